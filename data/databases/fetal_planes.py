"""FETAL_PLANES_DB: planes of routine screening in pregnancy, a table of patients, machines and the authors' split."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from data.databases.base import About, FolderDatabase, Row
from data.databases.known_value import known_value
from data.databases.named_files import named_files
from data.databases.table import read_rows

TABLE = "FETAL_PLANES_DB_data.csv"
COLUMNS = ("Image_name", "Patient_num", "Plane", "Brain_plane", "Operator", "US_Machine", "Train")
ORGANS = {
    "fetal abdomen": "fetus",
    "fetal brain": "fetus",
    "fetal femur": "fetus",
    "fetal thorax": "fetus",
    "maternal cervix": "maternal cervix",
    "other": None,
}
VIEWS = ("trans-thalamic", "trans-cerebellum", "trans-ventricular")
BRAIN_PLANES = (*VIEWS, "other", "not a brain")
SPLITS = {"1": "train", "0": "test"}


class FetalPlanes(FolderDatabase):
    """`FETAL_PLANES_ZENODO` as it is downloaded."""

    about: ClassVar[About] = About(
        title="FETAL_PLANES_DB, common maternal-fetal ultrasound planes",
        layout=("Images/Patient00001_Plane1_1_of_15.png", f"{TABLE}, by semicolons, with {', '.join(COLUMNS)}"),
        labels="other 4,213, fetal brain 3,092, thorax 1,718, maternal cervix 1,626, fetal femur 1,040, abdomen 711 "
        "(Plane)",
        masks="none",
        patients="Patient_num: 1,792; the authors' split by patient (Train, 1 or 0) is kept as train and test",
        licence="CC BY 4.0",
        citation="Burgos-Artizzu et al. 2020, doi:10.1038/s41598-020-67076-5",
        faults=(
            "copies with images that the table lacks are about: they are left out with a warning",
            "the header Train ends in a space; images are RGBA; some have callipers and text",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = (
        "Maternal-fetal ultrasound image, {label} plane",
        "Maternal-fetal ultrasound image, {label} plane, {machine}",
        "Ultrasound image of the {label}, {view} view",
    )
    attributes: ClassVar[tuple[str, ...] | None] = ("operator", "machine")
    needed: ClassVar[tuple[str, ...]] = ("Images/", TABLE)

    kind: Literal["fetal-planes"] = "fetal-planes"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield images in the order of the table."""
        self.check_layout()
        path = self.root / TABLE
        table = list(read_rows(path, COLUMNS, separator=";"))
        images = named_files(self.root / "Images", [row["Image_name"] for row in table], path, others="leave out")
        for row in table:
            name = row["Image_name"]
            label = known_value(row["Plane"], ORGANS, f"{path}: Plane of {name}")
            brain_plane = known_value(row["Brain_plane"], BRAIN_PLANES, f"{path}: Brain_plane of {name}")
            view = brain_plane if brain_plane in VIEWS else None
            said = {"operator": row["Operator"], "machine": row["US_Machine"]}
            attributes = {key: words for key, words in said.items() if words not in ("", "Other")}
            yield Row(
                id=name,
                image=images[name],
                prompts=self.fill_prompts(label=label, organ=ORGANS[label], view=view, **attributes),
                label=label,
                organ=ORGANS[label],
                view=view,
                attributes=attributes,
                patient=row["Patient_num"] or None,
                split=SPLITS[known_value(row["Train"], SPLITS, f"{path}: Train of {name}")],
                licence=self.about.licence,
            )
