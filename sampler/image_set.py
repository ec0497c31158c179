"""A folder of generated images with labels.csv, masks and a contact sheet: a training set in one command."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sampler.contact_sheet import Tile, contact_sheet
from sampler.draw import Drawer, Settings
from sampler.errors import SamplerError
from sampler.masks import GivenMask, mask_picture
from sampler.picture import GENERATED, SIMULATED, picture_bytes, write_whole
from sampler.plan import Planned

SETTINGS, LABELS, SHEET = "settings.json", "labels.csv", "contact_sheet.png"
COLUMNS = ("file", "label", "database", "prompt", "seed", "mask")
# Of a set that has more, the sheet shows the first of each prompt.
SHEET_TILES, SHEET_COLUMNS = 64, 8


class ImageSet:
    """A set in a folder: new, or one that an equal command began."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], plan: Sequence[Planned]) -> None:
        """Take the folder. settings: all that the images depend on, as JSON.

        Raises: SamplerError if it holds anything else, which is never overwritten.
        """
        self.folder, self._plan = folder, list(plan)
        told = folder / SETTINGS
        wanted = json.loads(json.dumps(settings))
        if folder.exists() and not folder.is_dir():
            raise SamplerError(f"{folder} is no folder; choose another --out")
        if told.is_file():
            try:
                stored = json.loads(told.read_text(encoding="utf-8"))
            except ValueError as error:
                raise SamplerError(f"{told} cannot be read ({error}); choose another --out") from error
            if stored != wanted:
                differs = next(key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key))
                raise SamplerError(
                    f"{folder} holds images of other settings ({differs}: {_short(stored.get(differs))} there, "
                    f"{_short(wanted.get(differs))} now); choose another --out, or remove it"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise SamplerError(f"{folder} is not empty, and nothing in it is overwritten; choose another --out")
        else:
            write_whole(told, json.dumps(wanted, indent=2, ensure_ascii=False).encode())

    def missing(self) -> list[Planned]:
        """Return the images that are still to be drawn."""
        return [planned for planned in self._plan if not (self.folder / planned.file).is_file()]

    def draw(
        self,
        drawer: Drawer,
        settings: Settings,
        negative: str,
        masks: Sequence[GivenMask],
        batch_size: int,
        progress: Callable[[float], None],
    ) -> None:
        """Draw what is missing, `batch_size` images at a time; labels.csv names what is there, also after an error.

        progress: called with the images done, in parts of an image too.
        """
        missing = self.missing()
        if missing:
            drawer.prepare_text([negative, *(planned.prompt for planned in missing)])
        try:
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                wishes = [planned.wish(negative, masks) for planned in batch]

                def tell(done: int, steps: int, start: int = start, size: int = len(batch)) -> None:
                    progress(start + size * done / steps)

                images = drawer.draw(wishes, settings, tell)
                for planned, wish, image in zip(batch, wishes, images, strict=True):
                    if wish.mask_HW is not None:
                        content = io.BytesIO()
                        mask_picture(wish.mask_HW, drawer.manifest.palette).save(content, "PNG")
                        write_whole(self.folder / planned.mask_file, content.getvalue())
                    # The image last: where it is, its mask is too.
                    content_png = picture_bytes(image, wish, settings, drawer.manifest, planned.mask_file)
                    write_whole(self.folder / planned.file, content_png)
        finally:
            self._write_labels()
        self._write_sheet(drawer)

    def _write_labels(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one in self._plan:
            if (self.folder / one.file).is_file():
                writer.writerow((one.file, one.label, one.database, one.prompt, one.seed, one.mask_file))
        write_whole(self.folder / LABELS, text.getvalue().encode())

    def _write_sheet(self, drawer: Drawer) -> None:
        groups: dict[tuple[str, str], list[Planned]] = {}
        by_class = len({one.prompt for one in self._plan}) > SHEET_TILES // SHEET_COLUMNS
        for one in self._plan:
            groups.setdefault((one.database, one.label) if by_class and one.label else ("", one.prompt), []).append(one)
        shown = SHEET_TILES if len(groups) == 1 else min(SHEET_COLUMNS, -(-SHEET_TILES // len(groups)))
        tiles = []
        for (database, label), members in list(groups.items())[:SHEET_TILES]:
            title = f"{label} ({database})" if database else label
            for one in members[:shown]:
                mask = self._opened(one.mask_file) if one.mask_file else None
                tiles.append(Tile(title, f"{one.number}, seed {one.seed}", self._opened(one.file), mask))
        manifest = drawer.manifest
        many = f"the first {len(tiles)} of {len(self._plan)} images" if len(tiles) < len(self._plan) else ""
        count = many or f"{len(tiles)} image" + "s" * (len(tiles) != 1)
        footer = " ".join([GENERATED, *([SIMULATED] if manifest.is_simulated else [])])
        sheet = contact_sheet(tiles, f"{manifest.name}: {count}", footer, SHEET_COLUMNS)
        content = io.BytesIO()
        sheet.save(content, "PNG")
        write_whole(self.folder / SHEET, content.getvalue())

    def _opened(self, name: str) -> Image.Image:
        with Image.open(self.folder / name) as picture:
            return picture.convert("RGB")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
