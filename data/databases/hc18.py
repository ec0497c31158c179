"""HC18: the fetal head in its standard plane, outlined by an ellipse."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data.databases.base import About, FolderDatabase, Row
from data.databases.derived import derived_png, first_fault
from data.databases.outline import fill_outline
from data.databases.table import read_rows
from data.errors import DataError
from data.images import BINARY, decode, mask_values

TABLES = {"training_set": "training_set_pixel_size_and_HC.csv", "test_set": "test_set_pixel_size.csv"}
CIRCUMFERENCE = "head circumference (mm)"


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
    needed: ClassVar[tuple[str, ...]] = ("training_set/", TABLES["training_set"])

    kind: Literal["hc18"] = "hc18"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield the training set, then the public test set if it is there; masks are made in the workspace."""
        self.check_layout()
        yield from self._set("training_set", workspace)
        if (self.root / "test_set").is_dir():
            yield from self._set("test_set", workspace)

    def _set(self, folder: str, workspace: Path) -> Iterator[Row]:
        is_training = folder == "training_set"
        for image, listed in self._images(folder, has_outlines=is_training):
            words = _words(self.root / TABLES[folder], listed[CIRCUMFERENCE]) if is_training else {}
            label = f"{words['trimester']} trimester" if is_training else "unknown"
            outline = image.with_name(_outline(image.name))
            mask = workspace / f"{image.stem}_mask.png"
            drawn = [derived_png(mask, [outline], partial(_mask, outline))] if is_training else []
            yield Row(
                id=f"{folder}/{image.stem}",
                image=image,
                prompts=self.fill_prompts(label=label, organ="fetal head", **words),
                label=label,
                masks=tuple(made.path for made in drawn),
                mask_classes={1: "head"} if is_training else {},
                organ="fetal head",
                attributes=words,
                patient=f"{folder}/{image.stem.partition('_')[0]}",
                split=None if is_training else "test",
                licence=self.about.licence,
                fault=first_fault(*drawn),
            )

    def _images(self, folder: str, has_outlines: bool) -> list[tuple[Path, dict[str, str]]]:
        """Return a set's images by name, with their lines of its table; no file is missing, and none is left over."""
        table = self.root / TABLES[folder]
        columns = ("filename", CIRCUMFERENCE) if has_outlines else ("filename",)
        listed: dict[str, dict[str, str]] = {}
        for row in read_rows(table, columns):
            if listed.setdefault(row["filename"], row) != row:
                raise DataError(f"hc18: {table} has two rows of {row['filename']}; needed one: copy it anew")
        needed = set(listed) | {_outline(name) for name in listed if has_outlines}
        found = {path.name for path in (self.root / folder).glob("*.png")}
        if missing := sorted(needed - found):
            raise self.error(f"there is no {self.root / folder / missing[0]}, which {table.name} asks for")
        if alone := sorted(found - needed):
            raise self.error(f"{self.root / folder / alone[0]} belongs to no line of {table.name}")
        return [(self.root / folder / name, listed[name]) for name in sorted(listed)]


def _outline(name: str) -> str:
    return name.replace(".png", "_Annotation.png")


def _words(table: Path, circumference_mm: str) -> dict[str, str]:
    try:
        value = float(circumference_mm)
    except ValueError as error:
        raise DataError(f"hc18: {table} has {CIRCUMFERENCE} '{circumference_mm}', needed a number") from error
    return {"trimester": _trimester(value), "head_circumference": f"{value:.0f} mm"}


def _trimester(circumference_mm: float) -> str:
    """Return the trimester in which a head's circumference is the median (before week 14, before week 28, later).

    Source: Hadlock et al. 1984, Radiology 152:497-501: weeks = 8.96 + 0.540 HC + 0.0003 HC^3, HC in cm.
    """
    circumference_cm = circumference_mm / 10
    weeks = 8.96 + 0.540 * circumference_cm + 0.0003 * circumference_cm**3
    return "first" if weeks < 14 else "second" if weeks < 28 else "third"


def _mask(outline: Path) -> NDArray[np.uint8]:
    mask = fill_outline(mask_values(decode(outline)[0], {BINARY: "head"}) == BINARY)
    if not mask.any():
        raise DataError(f"hc18: {outline} is empty; needed a white outline on black: copy it anew")
    return mask
