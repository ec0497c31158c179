"""CAMUS: the heart in two views at the end of diastole and systole, as NIfTI."""

import warnings
from collections.abc import Collection, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.databases.base import About, FolderDatabase, Row, some_names
from data.databases.derived import derived_png, first_fault
from data.databases.ejection_fraction import ejection_fraction_words
from data.databases.nifti import read_picture
from data.databases.outline import fill_outline
from data.databases.table import read_text
from data.errors import DataError

CLASSES = {1: "left ventricle", 2: "myocardium", 3: "left atrium"}
CHAMBERS = {"2CH": "two", "4CH": "four"}
PHASES = {"ED": "diastole", "ES": "systole"}
MEND_LISTS = "copy the lists anew, or remove them to draw splits"
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
        licence="on registration, for scientific research; cite the paper",
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
    needed: ClassVar[tuple[str, ...]] = ("database_nifti/",)

    kind: Literal["camus"] = "camus"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield four images per patient; upright pictures and masks of square pixels are made in the workspace."""
        self.check_layout()
        folder = self.root / "database_nifti"
        patients = sorted(path for path in folder.glob("patient*") if path.is_dir())
        if not patients:
            raise self.error(f"{folder} has no folder 'patient0001' (found {some_names(folder)})")
        splits = self._splits([patient.name for patient in patients])
        for patient, (view, chambers) in product(patients, CHAMBERS.items()):
            info = _info(patient / f"Info_{view}.cfg")
            for abbreviation, phase in PHASES.items():
                name = f"{patient.name}_{view}_{abbreviation}"
                image, mask = patient / f"{name}.nii.gz", patient / f"{name}_gt.nii.gz"
                if missing := [path.name for path in (image, mask) if not path.is_file()]:
                    raise DataError(f"camus: {patient} lacks {missing[0]}; needed both views and phases: copy it anew")
                made = derived_png(workspace / f"{name}.png", [image], partial(_picture, image))
                made_mask = derived_png(workspace / f"{name}_mask.png", [image, mask], partial(_mask, image, mask))
                label, attributes = f"{chambers}-chamber {phase}", {"chambers": chambers, "phase": phase} | info
                yield Row(
                    id=name,
                    image=made.path,
                    prompts=self.fill_prompts(label=label, organ="heart", view=f"{chambers}-chamber", **attributes),
                    label=label,
                    masks=(made_mask.path,),
                    mask_classes=CLASSES,
                    organ="heart",
                    view=f"{chambers}-chamber",
                    attributes=attributes,
                    patient=patient.name,
                    split=splits.get(patient.name.lower()),
                    licence=self.about.licence,
                    fault=first_fault(made, made_mask),
                )

    def _splits(self, on_disk: Collection[str]) -> dict[str, str]:
        """Return the database's own splits by patient, in lower case; none if its lists were not downloaded.

        on_disk: the patients that there are. Those that only a list has are told in a warning.
        Raises: DataError if a list is missing, a patient is in two of them, or one on disk is in none.
        """
        lists = {split: self.root / "database_split" / f"subgroup_{name}.txt" for name, split in SUBGROUPS.items()}
        if not any(path.is_file() for path in lists.values()):
            return {}
        if missing := [path for path in lists.values() if not path.is_file()]:
            raise DataError(f"camus: there is no {missing[0]}; needed all of {', '.join(SUBGROUPS)}, or none of them")
        splits: dict[str, str] = {}
        for split, path in lists.items():
            for patient in read_text(path).lower().split():
                if splits.setdefault(patient, split) != split:
                    raise DataError(
                        f"camus: {path} has {patient}, which {lists[splits[patient]]} has too: {MEND_LISTS}"
                    )
        folder = self.root / "database_split"
        if unlisted := [patient for patient in on_disk if patient.lower() not in splits]:
            raise DataError(
                f"camus: {unlisted[0]} is in no list of {folder} ({len(unlisted)} are in none): {MEND_LISTS}"
            )
        if absent := sorted(splits.keys() - {patient.lower() for patient in on_disk}):
            warnings.warn(
                f"camus: {len(absent)} patients of the lists in {folder} are not in database_nifti: {absent[0]} ...",
                stacklevel=2,
            )
        return splits


def _info(path: Path) -> dict[str, str]:
    """Return what Info_2CH.cfg says, in words; what it lacks is left out."""
    if not path.is_file():
        raise DataError(f"camus: there is no {path}; needed 'ImageQuality: Good' and the like: copy it anew")
    lines = (line.partition(":") for line in read_text(path).splitlines())
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
