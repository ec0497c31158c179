"""The layout of HC18 is read as it is, and refused when it is another one."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from data.databases import Hc18, Row
from data.errors import DataError
from data.prepare import PrepareConfig, prepare
from tests.data.databases.fixtures import hc18
from tests.data.databases.made_by_rows import faults_of, mask_of, times

TABLE = "training_set_pixel_size_and_HC.csv"
LAYOUT = (
    "needed training_set/000_HC.png, training_set/000_HC_Annotation.png, training_set_pixel_size_and_HC.csv, "
    "test_set/000_HC.png and test_set_pixel_size.csv (optional): set root, or see `sonoshard databases hc18`"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hc18.write_hc18(tmp_path_factory.mktemp("hc18"))


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "HC18"))


def rows_of(root: Path, workspace: Path) -> dict[str, Row]:
    return {row.id: row for row in Hc18(root=root).rows(workspace)}


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        rows_of(root, root.parent / "workspace")
    return str(refused.value)


def test_rows(written: Path, tmp_path: Path) -> None:
    rows = rows_of(written, tmp_path)
    assert Counter((row.split, row.label) for row in rows.values()) == {
        (None, "first trimester"): 4,
        (None, "second trimester"): 4,
        (None, "third trimester"): 4,
        ("test", "unknown"): 4,
    }
    row = rows["training_set/001_HC"]
    assert row.prompts == (
        "Ultrasound image of a fetal head in the second trimester",
        "Ultrasound image of a fetal head",
    )
    assert (row.organ, row.pathology, row.view) == ("fetal head", None, None)
    assert row.attributes == {"trimester": "second", "head_circumference": "176 mm"}
    assert row.mask_classes == {1: "head"}


def test_images_of_one_number_are_one_patient(written: Path, tmp_path: Path) -> None:
    patients = {id_: row.patient for id_, row in rows_of(written, tmp_path).items()}
    assert patients["training_set/003_HC"] == patients["training_set/003_2HC"] == patients["training_set/003_3HC"]
    # The test set counts its own patients.
    assert patients["training_set/003_HC"] != patients["test_set/003_HC"]
    assert len(set(patients.values())) == 9 + 4


def test_the_public_test_set_has_no_masks(written: Path, tmp_path: Path) -> None:
    row = rows_of(written, tmp_path)["test_set/002_HC"]
    assert (row.masks, row.mask_classes, row.attributes) == ((), {}, {})
    assert row.prompts == ("Ultrasound image of a fetal head",)


def test_the_test_set_may_be_left_out(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "test_set")
    assert len(rows_of(root, tmp_path / "workspace")) == 12


def test_outlines_are_filled_though_broken_or_cut(written: Path, tmp_path: Path) -> None:
    rows = rows_of(written, tmp_path)
    for name in hc18.TRAINING:
        true, read = hc18.picture("training_set", name)[1], mask_of(rows[f"training_set/{name}"]) == 1
        # The hull of an ellipse's pixels has straight edges between them: within a pixel of its border.
        assert not (read & ~binary_dilation(true, np.ones((3, 3), bool))).any()
        assert not (true & ~binary_dilation(read, np.ones((3, 3), bool))).any()
        assert (read != true).mean() < 0.01
    cut = mask_of(rows[f"training_set/{hc18.CUT}"])
    assert cut[:, 0].sum() > 20


def test_nothing_is_made_twice(written: Path, tmp_path: Path) -> None:
    rows_of(written, tmp_path)
    before = times(tmp_path)
    rows_of(written, tmp_path)
    assert len(before) == 12
    assert times(tmp_path) == before


@pytest.mark.parametrize(("millimetres", "trimester"), [("44.3", "first"), ("89", "first"), ("92", "second")])
def test_trimesters(root: Path, tmp_path: Path, millimetres: str, trimester: str) -> None:
    table = root / TABLE
    table.write_text(table.read_text().replace("000_HC.png,0.0691358,69.8", f"000_HC.png,0.0691358,{millimetres}"))
    assert rows_of(root, tmp_path / "workspace")["training_set/000_HC"].attributes["trimester"] == trimester


def test_the_folder_within(root: Path) -> None:
    message = refusal(root / "training_set")
    assert message.startswith(f"hc18: {root}/training_set lacks training_set, {TABLE} (found 000_HC.png, 000_HC_Anno")
    assert message.endswith(LAYOUT)


@pytest.mark.parametrize("name", ["004_HC.png", "004_HC_Annotation.png"])
def test_an_image_or_outline_is_missing(root: Path, name: str) -> None:
    path = root / "training_set" / name
    path.unlink()
    assert refusal(root) == f"hc18: there is no {path}, which {TABLE} asks for; {LAYOUT}"


@pytest.mark.parametrize("name", ["999_HC.png", "999_HC_Annotation.png"])
def test_an_image_or_outline_is_left_over(root: Path, name: str) -> None:
    path = root / "training_set" / name
    shutil.copy(root / "training_set" / "000_HC.png", path)
    assert refusal(root) == f"hc18: {path} belongs to no line of {TABLE}; {LAYOUT}"


def test_a_table_lacks_a_column(root: Path) -> None:
    shutil.copy(root / "test_set_pixel_size.csv", root / TABLE)
    message = f"{root}/{TABLE} lacks the column head circumference (mm) (found filename, pixel size(mm))"
    assert refusal(root) == message


def test_a_circumference_is_missing(root: Path) -> None:
    table = root / TABLE
    table.write_text(table.read_text().replace("69.8", "", 1))
    assert refusal(root) == f"hc18: {table} has head circumference (mm) '', needed a number"


def test_an_empty_outline(root: Path) -> None:
    path = root / "training_set" / "004_HC_Annotation.png"
    Image.new("L", (96, 96)).save(path)
    message = f"hc18: {path} is empty; needed a white outline on black: copy it anew"
    assert faults_of(rows_of(root, root.parent / "workspace").values()) == {"training_set/004_HC": message}


def test_a_damaged_outline_is_skipped_with_its_image(root: Path) -> None:
    path = root / "training_set" / "004_HC_Annotation.png"
    path.write_bytes(path.read_bytes()[:60])
    config = PrepareConfig(on_undecodable="skip", validation_fraction=0.2)
    report = prepare({"hc18": Hc18(root=root)}, config, root.parent / "manifest.parquet", root.parent / "workspace")
    assert list(report.skipped) == ["hc18/training_set/004_HC"]
    assert report.skipped["hc18/training_set/004_HC"].startswith(f"{path} cannot be decoded: ")
    assert report.num_images == 15


def test_a_name_with_two_circumferences(root: Path) -> None:
    table = root / TABLE
    table.write_text(table.read_text() + "000_HC.png,0.0691358,200\n")
    assert refusal(root) == f"hc18: {table} has two rows of 000_HC.png; needed one: copy it anew"
