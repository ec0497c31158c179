"""UDIAT: breast lesions, two folders of one file name and an Excel table of benign and malignant."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from data.databases.base import About, FolderDatabase, Row
from data.databases.known_value import known_value
from data.databases.named_files import named_files
from data.databases.table import read_rows

TABLE = "DatasetB.xlsx"
COLUMNS = ("Image", "Type")


class Udiat(FolderDatabase):
    """The folder of dataset B as its authors send it."""

    about: ClassVar[About] = About(
        title="UDIAT, Breast Ultrasound Dataset B",
        layout=("original/000001.png", "GT/000001.png", f"{TABLE} with {', '.join(COLUMNS)}"),
        labels="benign 110, malignant 53 (Type)",
        masks="lesion, cut at 128: they are not 0 and 255 only",
        patients="not told: near-duplicates share a split",
        licence="on request, for research: see the agreement you signed",
        citation="Yap et al. 2018, doi:10.1109/JBHI.2017.2731873",
        faults=("the table counts images as 1, 2 ...; the files have six digits",),
    )
    default_prompts: ClassVar[tuple[str, ...]] = (
        "Ultrasound image of {label} breast",
        "Breast ultrasound of a {label} lesion",
    )
    needed: ClassVar[tuple[str, ...]] = ("original/", "GT/", TABLE)

    kind: Literal["udiat"] = "udiat"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield images in the order of the table."""
        self.check_layout()
        path = self.root / TABLE
        table = list(read_rows(path, COLUMNS))
        names = [row["Image"].zfill(6) for row in table]
        images = named_files(self.root / "original", names, path)
        masks = named_files(self.root / "GT", names, path)
        for name, row in zip(names, table, strict=True):
            label = known_value(row["Type"], ("benign", "malignant"), f"{path}: Type of {row['Image']}")
            yield Row(
                id=name,
                image=images[name],
                prompts=self.fill_prompts(label=label, organ="breast", pathology=label),
                label=label,
                masks=(masks[name],),
                mask_classes={255: "lesion"},
                organ="breast",
                pathology=label,
                licence=self.about.licence,
            )
