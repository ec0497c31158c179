"""A reader study made from a run: real and generated images, alike in all but what they show, in one shuffled page."""

# N images, H W height and width in pixels

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import DataError
from data.manifest import Manifest, ManifestRow
from data.preprocessing import picture_of
from evaluation.generated_images import count_generated, generated_databases, read_generated
from evaluation.reader_study.choice import choose_rows
from evaluation.reader_study.generated import draw, stage_to_show
from evaluation.reader_study.key import KeyRow, Kind, read_key, write_key
from evaluation.reader_study.page import Simulated, write_page
from launch.config import RunConfig
from models.base import resolution_of

FOLDER = "reader_study"
PAGE_FILE, KEY_FILE = "study.html", "key.csv"
# Keeps this use of the run's seed apart from others.
SEED_TAG = 0x57D7
MIN_IMAGES = 2


@dataclass(frozen=True)
class ShownImage:
    """An image of a study. png: 8-bit grey. kind, database, label, source: as in the key."""

    png: bytes
    kind: Kind
    database: str
    label: str
    source: str


def make_study(
    config: RunConfig,
    num_images: int,
    *,
    stage_name: str | None = None,
    images: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the page and the key of a study to RUN/reader_study; return the page.

    num_images: real ones of the test split, and as many generated ones, fewer of both where there are fewer. Those of a
    stage (None: the last diffusion stage with a model) are drawn with the prompts of the real ones shown, so that
    databases and labels are in balance; of a folder `images`, those that its labels.csv names are taken at random, or
    those there are, without masks and contact sheet. The same run, seed and settings make the same study.
    Raises: DataError if there are too few images, or if the folder has the key of another study, without which its
    answers would be lost.
    """
    random = np.random.default_rng([config.seed, SEED_TAG])
    rows = [row for row in Manifest.read(config.manifest_path).rows if row.split == "test"]
    if images is None:
        stage = stage_to_show(config, stage_name)
        learnt = config.databases_seen(stage)
        chosen = _choose([row for row in rows if row.database in learnt], num_images, num_images, random)
        seeds = random.integers(2**31, size=len(chosen)).tolist()
        say(f"{stage.name}: {len(chosen)} images of {', '.join(learnt)}")
        drawn = draw(config, stage, chosen, seeds)
        generated = [
            ShownImage(png(pixels), "generated", row.database, row.label, f"stage {stage.name}, seed {seed}")
            for pixels, row, seed in zip(drawn, chosen, seeds, strict=True)
        ]
    else:
        num = count_generated(images)
        # Real images of a database that the folder has none of would be known by their organ.
        databases = set(config.databases) & set(generated_databases(images)) or set(config.databases)
        chosen = _choose([row for row in rows if row.database in databases], num_images, num, random)
        places = sorted(random.permutation(num)[: len(chosen)].tolist())
        of_folder = read_generated(images, config.encode, resolution_of(config.model), places)
        generated = [
            ShownImage(png(pixels), "generated", database, label, str(images / file))
            for pixels, database, label, file in zip(
                of_folder.images_NHW, of_folder.databases, of_folder.labels, of_folder.files, strict=True
            )
        ]
    return write_study(config.run / FOLDER, [*_real(config, chosen), *generated], random, _simulated(chosen))


def write_study(
    folder: Path, images: Sequence[ShownImage], random: np.random.Generator, simulated: Simulated = "none"
) -> Path:
    """Write the page and the key of these images, shuffled, under names that mean nothing; return the page."""
    names = _names(len(images), random)
    shuffled = [images[place] for place in random.permutation(len(images))]
    study = sha256(b"".join(image.kind.encode() + image.png for image in shuffled)).hexdigest()[:8]
    _refuse_other_key(folder, study)
    rows = [
        KeyRow(study, name, image.kind, image.database, image.label, image.source)
        for name, image in zip(names, shuffled, strict=True)
    ]
    # The key first: a page without one would be of no use.
    write_key(folder / KEY_FILE, rows)
    pictures = [(name, image.png) for name, image in zip(names, shuffled, strict=True)]
    write_page(folder / PAGE_FILE, study, pictures, simulated=simulated)
    return folder / PAGE_FILE


def png(pixels_HW: NDArray[np.uint8]) -> bytes:
    """Return grey pixels as a PNG file that holds nothing else, the same way for every image."""
    assert pixels_HW.ndim == 2
    assert pixels_HW.dtype == np.uint8
    content = io.BytesIO()
    Image.fromarray(pixels_HW).save(content, format="PNG")
    return content.getvalue()


def _choose(
    rows: Sequence[ManifestRow], num_images: int, num_generated: int, random: np.random.Generator
) -> list[ManifestRow]:
    chosen = choose_rows(rows, min(num_images, num_generated), random)
    if len(chosen) < MIN_IMAGES:
        raise DataError(
            f"a reader study needs {MIN_IMAGES} real and {MIN_IMAGES} generated images, there are {len(rows)} held-out"
            f" and {num_generated} generated ones: give prepare.test_fraction a share and prepare in another folder, or"
            " give more images"
        )
    if len(chosen) < num_images:
        warnings.warn(
            f"{len(chosen)} real and {len(chosen)} generated images instead of {num_images} each: there are {len(rows)}"
            f" held-out and {num_generated} generated ones",
            stacklevel=3,
        )
    return chosen


def _real(config: RunConfig, rows: Sequence[ManifestRow]) -> list[ShownImage]:
    resolution = resolution_of(config.model)
    return [
        ShownImage(
            png(np.asarray(picture_of(row, resolution, config.encode.resize).convert("L"))),
            *("real", row.database, row.label, row.id),
        )
        for row in rows
    ]


def _simulated(rows: Sequence[ManifestRow]) -> Simulated:
    are = {"simulated" in row.flags for row in rows}
    return "some" if len(are) == 2 else "all" if are == {True} else "none"


def _names(num: int, random: np.random.Generator) -> list[str]:
    """Return distinct ids of 8 hexadecimal digits."""
    names: dict[str, None] = {}
    while len(names) < num:
        names[random.bytes(4).hex()] = None
    return list(names)


def _refuse_other_key(folder: Path, study: str) -> None:
    path = folder / KEY_FILE
    if path.exists() and (other := read_key(path)[0].study) != study:
        raise DataError(
            f"{path} is the key of study {other}, whose answers would be worth nothing without it: move {folder} away"
            f" to make study {study}"
        )
