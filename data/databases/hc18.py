"""HC18: the fetal head in its standard plane, outlined by an ellipse."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data.databases.base import About, FolderDatabase, Row, some_names
from data.databases.derived import derived_png
from data.databases.outline import fill_outline
from data.databases.table import read_rows
from data.errors import DataError
from data.images import BINARY, decode, mask_values

OUTLINE = "_Annotation"
CIRCUMFERENCE = "head circumference (mm)"
TABLES = {
    "training_set": ("training_set_pixel_size_and_HC.csv", ("filename", CIRCUMFERENCE)),
    "test_set": ("test_set_pixel_size.csv", ("filename",)),
}


class Hc18(FolderDatabase):
    """The folder with the unpacked `training_set`, and `test_set` if it was downloaded too, beside their tables."""

    about: ClassVar[About] = About(
        title="HC18, fetal head circumference",
        layout=(
            "training_set/000_HC.png",
            "training_set/000_HC_Annotation.png",
            "training_set_pixel_size_and_HC.csv",
            "test_set/000_HC.png and test_set_pixel_size.csv (optional)",
        ),
        labels="first, second or third trimester, from the head circumference; unknown in the test set",
        masks="head, the area within the outline (training set 999; the public test set, 335, has none)",
        patients="the number in the name: 010_HC.png and 010_2HC.png are one; the two sets are counted apart",
        licence="CC BY 4.0 by its mirrors",
        citation="van den Heuvel et al. 2018, doi:10.1371/journal.pone.0200412",
        faults=(
            "1,334 images of 551 women, but more numbers than women: some women may have several",
            "the public test set is the test split, without masks: some of the training set is drawn for it too",
            "outlines are drawn lines, cut by the border or broken: filled as the convex hull of their pixels",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = (
        "Ultrasound image of a fetal head in the {trimester} trimester",
        "Ultrasound image of a fetal head",
    )
    attributes: ClassVar[tuple[str, ...] | None] = ("trimester", "head_circumference")
    needed: ClassVar[tuple[str, ...]] = ("training_set", TABLES["training_set"][0])

    kind: Literal["hc18"] = "hc18"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield the training set, then the public test set if it is there; masks are made in the workspace."""
        self.check_layout()
        for folder, split in (("training_set", None), ("test_set", "test")):
            if not (self.root / folder).is_dir():
                continue
            for image, circumference_mm in self._images(folder):
                masks: tuple[Path, ...] = ()
                words: dict[str, str] = {}
                if circumference_mm is not None:
                    masks = (_mask(image, workspace),)
                    words = {"trimester": _trimester(circumference_mm)}
                    words["head_circumference"] = f"{circumference_mm:.0f} mm"
                label = f"{words['trimester']} trimester" if words else "unknown"
                yield Row(
                    id=f"{folder}/{image.stem}",
                    image=image,
                    prompts=self.fill_prompts(label=label, organ="fetal head", **words),
                    label=label,
                    masks=masks,
                    mask_classes={1: "head"} if masks else {},
                    organ="fetal head",
                    attributes=words,
                    patient=f"{folder}/{image.stem.partition('_')[0]}",
                    split=split,
                    licence=self.about.licence,
                )

    def _images(self, folder: str) -> list[tuple[Path, float | None]]:
        """Return a set's images by name, with the head circumference in mm where its table has it."""
        table, columns = TABLES[folder]
        images = {path.name: path for path in (self.root / folder).glob("*.png") if not path.stem.endswith(OUTLINE)}
        listed = {row["filename"]: row.get(CIRCUMFERENCE) for row in read_rows(self.root / table, columns)}
        if not images:
            raise self.error(f"{self.root / folder} has no '000_HC.png' (found {some_names(self.root / folder)})")
        if odd := sorted(name for name in images if re.fullmatch(r"\d+_\d*HC\.png", name) is None):
            raise DataError(f"hc18: {images[odd[0]]} is not named like '000_HC.png' or '000_2HC.png'")
        if alone := sorted(listed.keys() - images.keys()):
            raise DataError(f"hc18: {table} names {alone[0]}; needed that file in {folder}: copy it anew")
        if alone := sorted(images.keys() - listed.keys()):
            raise DataError(f"hc18: {table} has no line for {alone[0]}; needed one an image: copy the table anew")
        for outline in (self.root / folder).glob(f"*{OUTLINE}.png"):
            if (name := outline.name.replace(OUTLINE, "")) not in images:
                raise DataError(f"hc18: {outline} belongs to no image; needed {name} beside it")
        try:
            return [(images[name], float(mm) if (mm := listed[name]) else None) for name in sorted(images)]
        except ValueError as error:
            raise DataError(f"hc18: {table} has a head circumference that is no number: {error}") from error


def _trimester(circumference_mm: float) -> str:
    """Return the trimester in which a head's circumference is the median (before week 14, before week 28, later).

    Source: Hadlock et al. 1984, Radiology 152:497-501: weeks = 8.96 + 0.540 HC + 0.0003 HC^3, HC in cm.
    """
    circumference_cm = circumference_mm / 10
    weeks = 8.96 + 0.540 * circumference_cm + 0.0003 * circumference_cm**3
    return "first" if weeks < 14 else "second" if weeks < 28 else "third"


def _mask(image: Path, workspace: Path) -> Path:
    """Return the mask of the area within an image's outline."""
    outline = image.with_name(f"{image.stem}{OUTLINE}.png")
    if not outline.is_file():
        raise DataError(f"hc18: {image} has no outline; needed {outline.name} beside it")
    return derived_png(workspace / f"{image.stem}_mask.png", [outline], lambda: _filled(outline))


def _filled(outline: Path) -> NDArray[np.uint8]:
    mask = fill_outline(mask_values(decode(outline)[0], {BINARY: "head"}) == BINARY)
    if not mask.any():
        raise DataError(f"hc18: {outline} is empty; needed a white outline on black: copy it anew")
    return mask
