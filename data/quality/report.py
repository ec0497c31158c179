"""The report of `prepare` as one HTML file: what was found, what was done about it, and thumbnails to look at."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from data.durable import replacing
from data.errors import DataError
from data.images import decode, mask_values
from data.quality.faults import Faulty
from data.quality.look import Look
from data.quality.rules import FAULTS, Fault, QualityConfig

TEMPLATE = Path(__file__).parent / "report.html.jinja"
# Of each fault so many images are shown; all of them are named in the manifest's flags.
MAX_SHOWN = 48
THUMBNAIL = 160
MASK_COLOUR, MARK_COLOUR = (60, 180, 255), (255, 200, 0)
TITLES: dict[Fault, tuple[str, str]] = {
    "duplicate": ("Duplicates", "The same file more than once."),
    "near_duplicate": (
        "Near-duplicates",
        "Alike but for size, compression, brightness, marks or a mirror. They share a split, whatever the rule.",
    ),
    "two_labels": (
        "Two labels",
        "Copies of one picture that have different labels, or a mask that contradicts its image's label.",
    ),
    "overlay": ("Overlays", "Letters, callipers or other marks, in yellow boxes."),
    "colour_doppler": ("Colour Doppler", "Colours over a part of the image."),
    "combined": ("Combined", "Several views in one picture, as the database says."),
    "empty_mask": ("Empty masks", "No pixel of the mask is set, though the label is not `normal`."),
    "whole_mask": ("Whole masks", "The mask (blue) covers nearly all of the picture."),
    "mask_outside": ("Masks beside the image", "A part of the mask (blue) lies where the scanner shows nothing."),
}


@dataclass(frozen=True)
class Shown:
    """An image of the report. look: what was found in it; done: what became of it."""

    id: str
    image: Path
    masks: tuple[Path, ...]
    mask_classes: Mapping[int, str]
    look: Look
    faults: Sequence[Faulty]
    done: str


@dataclass(frozen=True)
class Section:
    """A fault in the report."""

    name: Fault
    title: str
    text: str
    rule: str
    count: int
    tiles: list[dict[str, str]]


def write_report(
    path: Path,
    images: Sequence[Shown],
    *,
    counts: Sequence[Sequence[object]],
    skipped: Mapping[str, str],
    config: QualityConfig,
    facts: Mapping[str, object],
) -> None:
    """Replace the HTML file at `path`.

    images: those with a fault that is not passed over. counts: rows of database, label, train, validation, test.
    facts: what stands in its head, by name. All texts are escaped.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(
        sections=list(_sections(images, config)), counts=counts, skipped=skipped, facts=facts, max_shown=MAX_SHOWN
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _sections(images: Sequence[Shown], config: QualityConfig) -> Iterator[Section]:
    for fault in FAULTS:
        action = config.rules.action(fault)
        if action == "keep":
            continue
        concerned = [(image, of) for image in images for of in image.faults if of.fault == fault]
        # Images alike stand side by side.
        concerned.sort(key=lambda pair: (min([pair[0].id, *pair[1].others]), pair[0].id))
        tiles = [_tile(image, of) for image, of in concerned[:MAX_SHOWN]]
        title, text = TITLES[fault]
        yield Section(fault, title, text, f"prepare.quality.rules.{fault}={action}", len(concerned), tiles)


def _tile(image: Shown, faulty: Faulty) -> dict[str, str]:
    others = ", ".join(faulty.others[:3]) + (f" and {len(faulty.others) - 3} more" if len(faulty.others) > 3 else "")
    detail = f"{faulty.detail}: {others}" if others else faulty.detail
    return {"source": _thumbnail(image, faulty.fault), "id": image.id, "detail": detail, "done": image.done}


def _thumbnail(image: Shown, fault: Fault) -> str:
    """Return a small picture as a data: address, with what the fault is about drawn in; '' if it is gone."""
    try:
        picture = decode(image.image)[0].convert("RGB")
        scale = min(1.0, THUMBNAIL / max(picture.size))
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        small = picture.resize(size, Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(small)
        if fault in ("mask_outside", "empty_mask", "whole_mask"):
            for path in image.masks:
                mask = Image.fromarray(mask_values(decode(path)[0], image.mask_classes) != 0)
                tint = Image.blend(small, Image.new("RGB", size, MASK_COLOUR), 0.5)
                small.paste(tint, mask=mask.resize(size, Image.Resampling.NEAREST))
        if fault == "overlay":
            for left, top, right, bottom in image.look.overlays.marks:
                draw.rectangle((left * scale - 1, top * scale - 1, right * scale, bottom * scale), outline=MARK_COLOUR)
    except DataError:
        return ""
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
