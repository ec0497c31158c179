"""The layout of CAMUS is read as it is, its pictures upright and square, and refused when it is another one."""

import os
import re
import shutil
from collections import Counter
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from data.databases import Camus, Row
from data.errors import DataError
from data.prepare import PrepareConfig, prepare
from tests.data.databases.fixtures import camus
from tests.data.databases.made_by_rows import faults_of, mask_of, picture_of, times

SECOND = "database_nifti/patient0002"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return camus.write_camus(tmp_path_factory.mktemp("camus"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "CAMUS_public"))


def rows_of(root: Path, workspace: Path) -> dict[str, Row]:
    return {row.id: row for row in Camus(root=root).rows(workspace)}


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        rows_of(root, root.parent / "workspace")
    return str(refused.value)


def fault(root: Path) -> str:
    """Return why the one image that cannot be used cannot."""
    faults = faults_of(rows_of(root, root.parent / "workspace").values())
    assert list(faults) == ["patient0002_2CH_ED"]
    return faults["patient0002_2CH_ED"]


def twice_as_wide(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(values, 2, axis=1)


def test_rows(written: Path, workspace: Path) -> None:
    rows = rows_of(written, workspace)
    assert Counter(row.label for row in rows.values()) == {
        f"{chambers}-chamber {phase}": 4 for chambers, phase in product(("two", "four"), ("diastole", "systole"))
    }
    row = rows["patient0002_4CH_ES"]
    prompt = "A cardiac ultrasound image, in a four chamber view, at the end of systole"
    assert (row.prompts, row.label) == ((prompt,), "four-chamber systole")
    assert (row.organ, row.view, row.pathology, row.patient) == ("heart", "four-chamber", None, "patient0002")
    assert row.mask_classes == {1: "left ventricle", 2: "myocardium", 3: "left atrium"}
    assert row.attributes == {
        "chambers": "four",
        "phase": "systole",
        "quality": "poor",
        "sex": "female",
        "age": "56",
        "ejection_fraction": "mildly reduced",
    }


def test_the_database_splits_by_patient(written: Path, workspace: Path) -> None:
    found = {(row.patient, row.split) for row in rows_of(written, workspace).values()}
    train, held_out = {"patient0001", "patient0002"}, {("patient0003", "validation"), ("patient0004", "test")}
    assert found == {(patient, "train") for patient in train} | held_out


def test_without_lists_there_is_no_split(root: Path) -> None:
    shutil.rmtree(root / "database_split")
    assert {row.split for row in rows_of(root, root.parent / "workspace").values()} == {None}


@pytest.mark.parametrize(("view", "phase"), list(product(("2CH", "4CH"), ("ED", "ES"))))
def test_pictures_are_upright_and_square(written: Path, workspace: Path, view: str, phase: str) -> None:
    made = picture_of(rows_of(written, workspace)[f"patient0003_{view}_{phase}"])
    stored, _ = camus.stored(3, view, phase)
    assert made.shape == (96, 96)
    # Halfway between neighbours, a value is a quarter of the one and three quarters of the other.
    left, right = np.pad(stored, ((0, 0), (1, 1)), mode="edge")[:, :-2], np.pad(stored, ((0, 0), (1, 1)), "edge")[:, 2:]
    expected = np.stack((0.75 * stored + 0.25 * left, 0.75 * stored + 0.25 * right), axis=2).reshape(96, 96)
    np.testing.assert_allclose(made, expected, atol=1, err_msg="more than rounding")


def test_masks_keep_black_blood_and_lose_what_leaks_out(written: Path, workspace: Path) -> None:
    for patient, view, phase in product(range(1, 5), ("2CH", "4CH"), ("ED", "ES")):
        row = rows_of(written, workspace)[f"patient{patient:04d}_{view}_{phase}"]
        picture, mask = camus.stored(patient, view, phase)
        assert (picture[mask == 1] == 0).any()
        np.testing.assert_array_equal(mask_of(row), twice_as_wide(mask))


def test_depth_runs_downwards(root: Path, tmp_path: Path) -> None:
    # A letter L, which no turn and no mirror leaves as it is.
    letter = np.full((96, 48), 10, np.uint8)
    letter[10:80, 10:14] = letter[76:80, 10:30] = 200
    name = root / SECOND / "patient0002_2CH_ED.nii.gz"
    camus.write_nifti(name, letter)
    made = picture_of(rows_of(root, tmp_path / "workspace")["patient0002_2CH_ED"])
    np.testing.assert_array_equal(made > 100, twice_as_wide(letter) > 100)


def test_square_pixels_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    name = root / SECOND / "patient0002_2CH_ED"
    picture, mask = camus.stored(2, "2CH", "ED")
    for suffix, values in (("", picture), ("_gt", mask)):
        nibabel.save(nibabel.Nifti1Image(values.T.astype(float)[..., None], np.eye(4)), f"{name}{suffix}.nii.gz")
    row = rows_of(root, tmp_path / "workspace")["patient0002_2CH_ED"]
    np.testing.assert_array_equal(picture_of(row), picture)
    np.testing.assert_array_equal(mask_of(row), mask)


def test_nothing_is_made_twice(written: Path, workspace: Path) -> None:
    rows_of(written, workspace)
    before = times(workspace)
    rows_of(written, workspace)
    assert len(before) == 32
    assert times(workspace) == before


def test_the_folder_within(root: Path) -> None:
    message = refusal(root / "database_nifti")
    assert message.startswith(f"camus: {root}/database_nifti lacks database_nifti (found patient0001/, patient0002/,")
    assert message.endswith("(optional): set root, or see `sonoshard databases camus`")


def test_no_patients(tmp_path: Path) -> None:
    (tmp_path / "database_nifti").mkdir()
    message = f"camus: {tmp_path}/database_nifti has no folder 'patient0001' (found nothing); needed database_nifti/"
    assert refusal(tmp_path).startswith(message)


@pytest.mark.parametrize("suffix", ["", "_gt"])
def test_an_image_or_mask_is_missing(root: Path, suffix: str) -> None:
    name = f"patient0002_4CH_ED{suffix}.nii.gz"
    (root / SECOND / name).unlink()
    message = f"camus: {root}/{SECOND} lacks {name}; needed both views and phases: copy it anew"
    assert refusal(root) == message


def test_a_cut_off_file(root: Path) -> None:
    path = root / SECOND / "patient0002_2CH_ED.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    assert fault(root).startswith(f"{path} cannot be read as NIfTI: ")


def test_no_nifti(root: Path) -> None:
    path = root / SECOND / "patient0002_2CH_ED.nii.gz"
    path.write_bytes(b"<html>Please register</html>")
    assert fault(root).startswith(f"{path} cannot be read as NIfTI: ")


def test_a_sequence_is_no_picture(root: Path) -> None:
    path = root / SECOND / "patient0002_2CH_ED.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 3), np.uint8), np.eye(4)), path)
    assert fault(root) == f"{path} has the shape (8, 8, 3), needed two dimensions"


def test_values_out_of_range(root: Path) -> None:
    path = root / SECOND / "patient0002_2CH_ED.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8), 300, np.int16), np.eye(4)), path)
    assert fault(root) == f"{path} has values from 300 to 300, needed 0 to 255"


def test_a_mask_of_another_size(root: Path) -> None:
    path = root / SECOND / "patient0002_2CH_ED_gt.nii.gz"
    camus.write_nifti(path, np.ones((8, 8), np.uint8))
    message = f"camus: {path} is of another size than patient0002_2CH_ED.nii.gz: copy both anew"
    assert fault(root) == message


def test_no_info(root: Path) -> None:
    path = root / SECOND / "Info_2CH.cfg"
    path.unlink()
    message = f"camus: there is no {path}; needed 'ImageQuality: Good' and the like: copy it anew"
    assert refusal(root) == message


def test_an_ejection_fraction_in_words(root: Path) -> None:
    path = root / SECOND / "Info_2CH.cfg"
    path.write_text("EF: fine\n")
    assert refusal(root) == f"{path} has the ejection fraction 'fine', needed a number of percent"


def test_the_first_downloads_called_it_lvef(root: Path, tmp_path: Path) -> None:
    (root / SECOND / "Info_2CH.cfg").write_text("LVef: 61.5\n")
    row = rows_of(root, tmp_path / "workspace")["patient0002_2CH_ED"]
    assert row.attributes == {"chambers": "two", "phase": "diastole", "ejection_fraction": "preserved"}


def test_a_list_of_patients_is_missing(root: Path) -> None:
    path = root / "database_split" / "subgroup_testing.txt"
    path.unlink()
    message = f"camus: there is no {path}; needed all of training, validation, testing, or none of them"
    assert refusal(root) == message


@pytest.mark.parametrize("as_written", ["\ufeffPATIENT0004\r\n", " Patient0004 "])
def test_lists_with_another_mark_or_case(root: Path, as_written: str) -> None:
    (root / "database_split" / "subgroup_testing.txt").write_text(as_written, encoding="utf-8", newline="")
    rows = rows_of(root, root.parent / "workspace")
    assert rows["patient0004_2CH_ED"].split == "test"


def test_a_patient_in_two_lists(root: Path) -> None:
    folder = root / "database_split"
    (folder / "subgroup_testing.txt").write_text("patient0004\npatient0003\n")
    assert refusal(root) == (
        f"camus: {folder}/subgroup_testing.txt has patient0003, which {folder}/subgroup_validation.txt has too: "
        "copy the lists anew, or remove them to draw splits"
    )


def test_a_patient_in_no_list(root: Path) -> None:
    (root / "database_split" / "subgroup_testing.txt").write_text("")
    assert refusal(root) == (
        f"camus: patient0004 is in no list of {root}/database_split (1 are in none): "
        "copy the lists anew, or remove them to draw splits"
    )


def test_listed_patients_that_are_not_there(root: Path) -> None:
    shutil.rmtree(root / "database_nifti" / "patient0003")
    message = f"camus: 1 patients of the lists in {root}/database_split are not in database_nifti: patient0003 ..."
    with pytest.warns(UserWarning, match=re.escape(message)) as warned:
        rows = rows_of(root, root.parent / "workspace")
    assert (len(warned), len(rows)) == (1, 12)


def test_lists_in_another_encoding(root: Path) -> None:
    path = root / "database_split" / "subgroup_testing.txt"
    path.write_text("patient0004", encoding="utf-16")
    assert refusal(root) == f"{path} cannot be read as text in UTF-8: open it and save it as text in UTF-8"


def test_pictures_of_another_root_are_made_anew(root: Path, tmp_path: Path) -> None:
    rows_of(root, tmp_path / "workspace")
    other = Path(shutil.copytree(root, tmp_path / "other"))
    path = other / SECOND / "patient0002_2CH_ED.nii.gz"
    status = path.stat()
    camus.write_nifti(path, np.full((96, 48), 77, np.uint8))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 10**15))
    made = picture_of(rows_of(other, tmp_path / "workspace")["patient0002_2CH_ED"])
    assert (made == 77).all()


def test_a_damaged_file_is_skipped_with_its_image(root: Path) -> None:
    path = root / SECOND / "patient0002_2CH_ED_gt.nii.gz"
    path.write_bytes(b"")
    config = PrepareConfig(on_undecodable="skip")
    report = prepare({"camus": Camus(root=root)}, config, root.parent / "manifest.parquet", root.parent / "workspace")
    assert list(report.skipped) == ["camus/patient0002_2CH_ED"]
    assert report.skipped["camus/patient0002_2CH_ED"].startswith(f"{path} cannot be read as NIfTI: ")
    assert report.num_images == 15
