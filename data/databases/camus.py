"""CAMUS: the heart in two views at the end of diastole and systole, as NIfTI."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.databases.base import About, FolderDatabase, Row, some_names
from data.databases.derived import derived_png
from data.databases.ejection_fraction import ejection_fraction_words
from data.databases.nifti import read_picture
from data.databases.outline import fill_outline
from data.errors import DataError

CLASSES = {1: "left ventricle", 2: "myocardium", 3: "left atrium"}
CHAMBERS = {"2CH": "two", "4CH": "four"}
PHASES = {"ED": "diastole", "ES": "systole"}
SUBGROUPS = {"training": "train", "validation": "validation", "testing": "test"}


class Camus(FolderDatabase):
    """The folder with `database_nifti`, and `database_split` if it was downloaded too."""

    about: ClassVar[About] = About(
        title="CAMUS, Cardiac Acquisitions for Multi-structure Ultrasound Segmentation",
        layout=(
            "database_nifti/patient0001/patient0001_2CH_ED.nii.gz",
            "database_nifti/patient0001/patient0001_2CH_ED_gt.nii.gz",
            "database_nifti/patient0001/Info_2CH.cfg",
            "database_split/subgroup_training.txt (optional)",
        ),
        labels="view and phase: {two,four}-chamber {diastole,systole}, 500 each",
        masks="left ventricle (its cavity), myocardium, left atrium",
        patients="the folder (500)",
        licence="on registration; cite the paper",
        citation="Leclerc et al. 2019, doi:10.1109/TMI.2019.2900516",
        faults=(
            "masks leak out of the sector: cut to the hull of all pixels above 0 (dark ones within it are tissue)",
            "pixels may be oblong: made square by the size in the header, the longer side resampled",
            "the half sequences between the phases are not used",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = (
        "A cardiac ultrasound image, in a {chambers} chamber view, at the end of {phase}",
    )
    attributes: ClassVar[tuple[str, ...] | None] = ("chambers", "phase", "quality", "sex", "age", "ejection_fraction")
    needed: ClassVar[tuple[str, ...]] = ("database_nifti",)

    kind: Literal["camus"] = "camus"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield four images a patient; upright pictures and masks of square pixels are made in the workspace."""
        self.check_layout()
        folder = self.root / "database_nifti"
        patients = sorted(path for path in folder.glob("patient*") if path.is_dir())
        if not patients:
            raise self.error(f"{folder} has no folder 'patient0001' (found {some_names(folder)})")
        splits = self._splits()
        for patient, (view, chambers) in product(patients, CHAMBERS.items()):
            info = _info(patient / f"Info_{view}.cfg")
            for abbreviation, phase in PHASES.items():
                name = f"{patient.name}_{view}_{abbreviation}"
                image, mask = patient / f"{name}.nii.gz", patient / f"{name}_gt.nii.gz"
                if missing := [path.name for path in (image, mask) if not path.is_file()]:
                    raise DataError(f"camus: {patient} lacks {missing[0]}; needed both views and phases: copy it anew")
                label, attributes = f"{chambers}-chamber {phase}", {"chambers": chambers, "phase": phase} | info
                yield Row(
                    id=name,
                    image=derived_png(workspace / f"{name}.png", [image], partial(_picture, image)),
                    prompts=self.fill_prompts(label=label, organ="heart", view=f"{chambers}-chamber", **attributes),
                    label=label,
                    masks=(derived_png(workspace / f"{name}_mask.png", [image, mask], partial(_mask, image, mask)),),
                    mask_classes=CLASSES,
                    organ="heart",
                    view=f"{chambers}-chamber",
                    attributes=attributes,
                    patient=patient.name,
                    split=splits.get(patient.name),
                    licence=self.about.licence,
                )

    def _splits(self) -> dict[str, str]:
        """Return the database's own splits by patient; none if its lists were not downloaded."""
        lists = {split: self.root / "database_split" / f"subgroup_{name}.txt" for name, split in SUBGROUPS.items()}
        if not any(path.is_file() for path in lists.values()):
            return {}
        if missing := [path for path in lists.values() if not path.is_file()]:
            raise DataError(f"camus: there is no {missing[0]}; needed all of {', '.join(SUBGROUPS)}, or none of them")
        return {patient: split for split, path in lists.items() for patient in path.read_text().split()}


def _info(path: Path) -> dict[str, str]:
    """Return what Info_2CH.cfg says, in words; what it lacks is left out."""
    if not path.is_file():
        raise DataError(f"camus: there is no {path}; needed 'ImageQuality: Good' and the like: copy it anew")
    lines = (line.partition(":") for line in path.read_text().splitlines())
    said = {key.strip(): value.strip() for key, _, value in lines}
    words = {
        "quality": said.get("ImageQuality", "").lower(),
        "sex": {"F": "female", "M": "male"}.get(said.get("Sex", ""), ""),
        "age": said.get("Age", ""),
    }
    # The first downloads said LVef.
    if percent := said.get("EF", said.get("LVef")):
        words["ejection_fraction"] = ejection_fraction_words(percent, path)
    return {name: word for name, word in words.items() if word}


def _picture(image: Path) -> NDArray[np.uint8]:
    return read_picture(image, Image.Resampling.BILINEAR)


def _mask(image: Path, mask: Path) -> NDArray[np.uint8]:
    """Return the classes within the sector: the convex hull of its pixels above 0, since tissue may be black too."""
    picture, classes = read_picture(image, Image.Resampling.BILINEAR), read_picture(mask, Image.Resampling.NEAREST)
    if classes.shape != picture.shape:
        raise DataError(f"camus: {mask} is of another size than {image.name}: copy both anew")
    return classes * fill_outline(picture > 0)
