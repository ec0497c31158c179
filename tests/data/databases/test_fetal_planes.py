"""The layout of FETAL_PLANES_DB is read as it is, and refused when it is another one."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from data.databases import FetalPlanes
from data.errors import DataError
from data.images import decode
from tests.data.databases.fixtures.fetal_planes import write_fetal_planes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_fetal_planes(tmp_path)


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        list(FetalPlanes(root=root).rows(root / "unused"))
    return str(refused.value)


def in_table(root: Path, old: str, new: str) -> Path:
    table = root / "FETAL_PLANES_DB_data.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    return table


def test_rows_are_planes_of_patients(root: Path) -> None:
    rows = list(FetalPlanes(root=root).rows(root / "unused"))
    assert Counter(row.label for row in rows) == {
        "other": 6,
        "maternal cervix": 6,
        "fetal abdomen": 6,
        "fetal brain": 12,
        "fetal femur": 6,
        "fetal thorax": 6,
    }
    brain = rows[3]
    assert (brain.id, brain.patient) == ("Patient00001_Plane4_1_of_1", "1")
    assert (brain.organ, brain.view, brain.pathology, brain.masks) == ("fetus", "trans-thalamic", None, ())
    assert brain.attributes == {"operator": "Op. 2", "machine": "Aloka"}
    assert brain.prompts == (
        "Maternal-fetal ultrasound image, fetal brain plane",
        "Maternal-fetal ultrasound image, fetal brain plane, Aloka",
        "Ultrasound image of the fetal brain, trans-thalamic view",
    )
    assert decode(brain.image)[0].mode == "RGBA"


def test_what_is_not_known_is_left_out(root: Path) -> None:
    rows = list(FetalPlanes(root=root).rows(root / "unused"))
    other = next(row for row in rows if row.patient == "2" and row.label == "other")
    assert (other.organ, other.view, other.attributes) == (None, None, {"operator": "Op. 3"})
    assert other.prompts == ("Maternal-fetal ultrasound image, other plane",)
    assert next(row for row in rows if row.label == "maternal cervix").organ == "maternal cervix"
    assert [row.view for row in rows if row.id.endswith("Plane7_1_of_1")] == [None] * 6


def test_the_split_is_by_patient(root: Path) -> None:
    splits = {(row.patient, row.split) for row in FetalPlanes(root=root).rows(root / "unused")}
    assert splits == {(str(patient), "train" if patient % 3 else "test") for patient in range(1, 7)}


def test_images_without_a_row_are_left_out_with_a_warning(root: Path) -> None:
    images = root / "Images"
    extra = images / "Patient00099_Plane1_1_of_1.png"
    shutil.copy(images / "Patient00001_Plane1_1_of_1.png", extra)
    with pytest.warns(UserWarning, match="1 files have no row in .*FETAL_PLANES_DB_data.csv and are left out"):
        assert len(list(FetalPlanes(root=root).rows(root / "unused"))) == 42


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("Fetal femur", "Fetal spine", "Plane of Patient00001_Plane5_1_of_1 is 'Fetal spine'"),
        ("Trans-thalamic", "Sagittal", "Brain_plane of Patient00001_Plane4_1_of_1 is 'Sagittal'"),
        ("Aloka;1", "Aloka;2", "Train of Patient00001_Plane1_1_of_1 is '2'"),
    ],
)
def test_another_value(root: Path, old: str, new: str, found: str) -> None:
    known = {
        "Plane": "fetal abdomen, fetal brain, fetal femur, fetal thorax, maternal cervix, other",
        "Brain_plane": "trans-thalamic, trans-cerebellum, trans-ventricular, other, not a brain",
        "Train": "1, 0",
    }
    table = in_table(root, old, new)
    assert refusal(root) == f"{table}: {found}, needed one of: {known[found.split()[0]]}"


def test_a_table_without_the_split(root: Path) -> None:
    table = in_table(root, "Train ", "Fold")
    found = "Image_name, Patient_num, Plane, Brain_plane, Operator, US_Machine, Fold"
    assert refusal(root) == f"{table} lacks the column Train (found {found})"


def test_a_missing_image(root: Path) -> None:
    (root / "Images" / "Patient00002_Plane1_1_of_1.png").unlink()
    assert refusal(root) == (
        f"{root}/Images lacks Patient00002_Plane1_1_of_1, which {root}/FETAL_PLANES_DB_data.csv needs "
        "(1 of 42 are missing): unpack the download again"
    )


def test_no_images(root: Path) -> None:
    shutil.rmtree(root / "Images")
    assert refusal(root) == (
        f"fetal-planes: {root} lacks Images (found FETAL_PLANES_DB_data.csv); needed "
        "Images/Patient00001_Plane1_1_of_15.png, FETAL_PLANES_DB_data.csv, by semicolons, with Image_name, "
        "Patient_num, Plane, Brain_plane, Operator, US_Machine, Train: set root, or see "
        "`sonoshard databases fetal-planes`"
    )
