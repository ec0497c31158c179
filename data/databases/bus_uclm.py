"""BUS-UCLM: breast scans of 38 patients, lesions painted green (benign) and red (malignant)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from data.databases.base import About, FolderDatabase, Row
from data.databases.class_mask import class_mask, from_colours
from data.databases.known_value import is_yes, known_value
from data.databases.named_files import named_files
from data.databases.table import read_rows
from data.errors import DataError
from data.images import decode

TABLE = "INFO.csv"
FLAGS = ("Doppler", "Marks", "Combined")
COLUMNS = ("Image", "Label", *FLAGS)
# A mask's class numbers are places in this; its colours in RGB are by the authors.
LABELS = ("normal", "benign", "malignant")
LEGEND = {(0, 255, 0): 1, (255, 0, 0): 2}


class BusUclm(FolderDatabase):
    """`BUS-UCLM` as it is downloaded."""

    about: ClassVar[About] = About(
        title="BUS-UCLM, Breast Ultrasound Lesion Segmentation Dataset",
        layout=("images/ALWI_000.png", "masks/ALWI_000.png", f"{TABLE}, by semicolons, with {', '.join(COLUMNS)}"),
        labels="normal 419, benign 174, malignant 90 (Label)",
        masks="lesion, of green and red; all black for a normal image",
        patients="what the file name begins with: 38",
        licence="unclear: CC BY-NC 3.0 or CC BY 4.0, by version",
        citation="Vallez et al. 2025, doi:10.1038/s41597-025-04562-3",
        faults=(
            "Doppler images, burned-in marks and several scans in one image are flagged doppler, marks, combined: "
            "see prepare.quality.rules; how the table says yes is read as 1, yes or true",
            "an image whose mask has not the colour of its label is flagged contradictory",
            "frames of one patient follow each other in a scan and are much alike",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = ("Ultrasound image of {label} breast",)
    needed: ClassVar[tuple[str, ...]] = ("images/", "masks/", TABLE)

    kind: Literal["bus-uclm"] = "bus-uclm"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield images in the order of the table; their masks are made in `workspace`."""
        self.check_layout()
        path = self.root / TABLE
        table = list(read_rows(path, COLUMNS, separator=";"))
        names = [_name(row["Image"], path) for row in table]
        images = named_files(self.root / "images", names, path)
        masks = named_files(self.root / "masks", names, path)
        for name, row in zip(names, table, strict=True):
            label = known_value(row["Label"], LABELS, f"{path}: Label of {name}")
            flags = [flag.lower() for flag in FLAGS if is_yes(row[flag], f"{path}: {flag} of {name}")]
            mask = class_mask(workspace / "masks" / f"{name}.png", masks[name], from_colours(LEGEND))
            if mask.fault is None and _painted_label(mask.path) != label:
                flags.append("contradictory")
            yield Row(
                id=name,
                image=images[name],
                prompts=self.fill_prompts(label=label, organ="breast", pathology=label),
                label=label,
                masks=(mask.path,),
                mask_classes=dict.fromkeys(LEGEND.values(), "lesion"),
                organ="breast",
                pathology=label,
                patient=name.rpartition("_")[0],
                licence=self.about.licence,
                flags=tuple(flags),
                fault=mask.fault,
            )


def _name(image: str, table: Path) -> str:
    """Return an image's name without extension. Raises: DataError if it does not say the patient."""
    name = re.sub(r"\.png$", "", image, flags=re.IGNORECASE)
    if not re.fullmatch(r".+_\d+", name):
        raise DataError(f"{table} has the Image {image!r}, needed the like of ALWI_000: patient, _, number")
    return name


def _painted_label(mask: Path) -> str:
    """Return the label that most painted pixels of a mask of class numbers mean."""
    counts = np.bincount(np.asarray(decode(mask)[0]).ravel(), minlength=len(LABELS))
    return LABELS[int(counts[1:].argmax()) + 1] if counts[1:].any() else "normal"
