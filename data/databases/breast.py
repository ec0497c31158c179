"""BrEaST: breast lesions with a radiologist's BI-RADS descriptors, masks in the alpha channel."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

from data.databases.base import About, FolderDatabase, Row, some_names
from data.databases.breast_descriptors import DESCRIPTORS, UNSAID, in_words
from data.databases.class_mask import class_mask, from_alpha
from data.databases.derived import first_fault
from data.databases.known_value import known_value
from data.databases.named_files import named_files
from data.databases.table import read_rows
from data.errors import DataError

FOLDER = "BrEaST-Lesions_USG-images_and_masks"
COLUMNS = ("Image_filename", "Mask_tumor_filename", "Mask_other_filename", "Classification", *DESCRIPTORS.values())
LABELS = ("benign", "malignant", "normal")


class Breast(FolderDatabase):
    """The folder with the unpacked images and the Excel table of Breast-Lesions-USG."""

    about: ClassVar[About] = About(
        title="BrEaST, Breast-Lesions-USG of The Cancer Imaging Archive",
        layout=(
            f"{FOLDER}/case001.png, case001_tumor.png, case001_other1.png",
            "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx",
        ),
        labels="benign 154, malignant 98, normal 4 (Classification)",
        masks="lesion, in the alpha channel; the tumour and other lesions of one image are united",
        patients="one image each",
        licence="CC BY 4.0",
        citation="Pawlowska et al. 2024, doi:10.1038/s41597-024-02984-z",
        faults=(
            "the label is of the tumour: other lesions of its image may be of another",
            "only 4 normal images: too few to train on, and maybe none in a split",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = (
        "Ultrasound image of {label} breast",
        "Breast ultrasound of a {label} lesion, {shape}, {margin} margin, {birads}",
        "Breast ultrasound, {shape} {echogenicity} mass, {margin} margin",
        "Breast ultrasound of a {label} lesion, {echogenicity}, {posterior}",
        "Breast ultrasound of a {label} lesion, {calcifications}, {birads}",
        "Breast ultrasound, {diagnosis}",
    )
    attributes: ClassVar[tuple[str, ...] | None] = tuple(DESCRIPTORS)
    needed: ClassVar[tuple[str, ...]] = (f"{FOLDER}/",)

    kind: Literal["breast"] = "breast"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield images in the order of the table; their masks are made in `workspace`."""
        self.check_layout()
        path = self._table()
        table = list(read_rows(path, COLUMNS))
        images = [Path(row["Image_filename"]).stem for row in table]
        masks = [[*_names(row["Mask_tumor_filename"]), *_names(row["Mask_other_filename"])] for row in table]
        files = named_files(self.root / FOLDER, [*images, *chain.from_iterable(masks)], path)
        for row, image, its_masks in zip(table, images, masks, strict=True):
            label = known_value(row["Classification"], LABELS, f"{path}: Classification of {image}")
            if not _names(row["Mask_tumor_filename"]) and label != "normal":
                raise DataError(f"{path} has no Mask_tumor_filename for {image}; needed one, for it is {label}")
            attributes = in_words(row, f"{path}: BIRADS of {image}")
            made = [class_mask(workspace / "masks" / f"{mask}.png", files[mask], from_alpha) for mask in its_masks]
            yield Row(
                id=image,
                image=files[image],
                prompts=self.fill_prompts(label=label, organ="breast", pathology=label, **attributes),
                label=label,
                masks=tuple(mask.path for mask in made),
                mask_classes={1: "lesion"} if its_masks else {},
                organ="breast",
                pathology=label,
                attributes=attributes,
                licence=self.about.licence,
                fault=first_fault(*made),
            )

    def _table(self) -> Path:
        tables = sorted(path for path in self.root.glob("*.xlsx") if not path.name.startswith(("~", ".")))
        if len(tables) != 1:
            raise self.error(f"{self.root} has {len(tables)} tables .xlsx (found {some_names(self.root)})")
        return tables[0]


def _names(cell: str) -> list[str]:
    """Return the file names in a cell, without extension; & joins several."""
    return [Path(name.strip()).stem for name in cell.split("&") if name.strip().lower() not in UNSAID]
