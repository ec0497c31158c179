"""The layout of TN3K and TG3K is read as it is, and refused when it is another one."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from data.databases import Row, Tn3k
from data.errors import DataError
from tests.data.databases.fixtures import tn3k
from tests.data.databases.made_by_rows import mask_of


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tn3k.write_tn3k(tmp_path_factory.mktemp("tn3k"))


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "root"))


def rows_of(root: Path, gland: bool = False) -> list[Row]:
    return list(Tn3k(root=root, gland=gland).rows(root / "unused"))


def refusal(root: Path, gland: bool = False) -> str:
    with pytest.raises(DataError) as refused:
        rows_of(root, gland)
    return str(refused.value)


def test_rows(written: Path) -> None:
    rows = rows_of(written)
    assert Counter((row.split, row.label) for row in rows) == {
        ("train", "benign"): 6,
        ("train", "malignant"): 6,
        ("test", "benign"): 2,
        ("test", "malignant"): 2,
    }
    second = rows[1]
    assert second.id == "trainval/0001"
    assert second.prompts == ("Ultrasound image of a malignant thyroid nodule",)
    assert (second.organ, second.pathology, second.patient) == ("thyroid", "malignant", None)
    assert second.attributes == {"finding": "malignant thyroid nodule"}
    assert second.mask_classes == {255: "thyroid nodule"}
    assert len({row.id for row in rows}) == 16
    assert not (written / "unused").exists()


def test_masks_are_cut_from_jpeg(written: Path) -> None:
    for row in rows_of(written):
        part, _, number = row.id.partition("/")
        true = tn3k.mask(part, int(number))
        read = mask_of(row) == 1
        # JPEG moves an edge by up to a pixel.
        assert not (read & ~binary_dilation(true, iterations=1, structure=np.ones((3, 3), bool))).any()
        assert not (binary_erosion(true, structure=np.ones((3, 3), bool)) & ~read).any()
        assert (read != true).mean() < 0.01


def test_glands_come_if_asked_for(written: Path) -> None:
    glands = rows_of(written, gland=True)[16:]
    assert [row.id for row in glands] == ["tg3k/0000", "tg3k/0001", "tg3k/0002", "tg3k/0003"]
    assert {(row.label, row.pathology, row.split) for row in glands} == {("thyroid", None, "train")}
    assert glands[0].prompts == ("Ultrasound image of a thyroid",)
    assert glands[0].mask_classes == {255: "thyroid gland"}


def test_a_header_does_not_harm(root: Path) -> None:
    table = root / "tn3k" / "label4test.csv"
    table.write_text("image_name,label\n" + table.read_text())
    assert len(rows_of(root)) == 16


def test_the_folder_within(root: Path) -> None:
    assert refusal(root / "tn3k").startswith(f"tn3k: {root}/tn3k lacks tn3k/trainval-image, tn3k/trainval-mask")


def test_a_download_without_labels(root: Path) -> None:
    (root / "tn3k" / "label4test.csv").unlink()
    assert refusal(root).startswith(f"tn3k: {root} lacks tn3k/label4test.csv (found tg3k/, tn3k/); needed tn3k/")


def test_no_glands(root: Path) -> None:
    shutil.rmtree(root / "tg3k")
    assert refusal(root, gland=True).startswith(f"tn3k: {root}/tg3k/thyroid-image has no '0000.jpg'; needed tn3k/")


def test_an_image_without_a_mask(root: Path) -> None:
    (root / "tn3k" / "test-mask" / "0002.jpg").unlink()
    message = "tn3k: 0002.jpg is in tn3k/test-image, but not in tn3k/test-mask; needed in both: copy it anew"
    assert refusal(root) == message


def test_a_mask_without_an_image(root: Path) -> None:
    (root / "tn3k" / "test-image" / "0002.jpg").unlink()
    message = "tn3k: 0002.jpg is in tn3k/test-mask, but not in tn3k/test-image; needed in both: copy it anew"
    assert refusal(root) == message


def test_an_image_without_a_label(root: Path) -> None:
    table = root / "tn3k" / "label4test.csv"
    table.write_text(table.read_text().replace("0003.jpg,1\n", ""))
    message = "tn3k: 0003.jpg is in tn3k/test-image, but not in the CSV of labels; needed in both: copy it anew"
    assert refusal(root) == message


def test_an_unknown_label(root: Path) -> None:
    table = root / "tn3k" / "label4trainval.csv"
    table.write_text(table.read_text().replace("0001.jpg,1", "0001.jpg,2"))
    assert refusal(root) == f"tn3k: {table} line 2 is '0001.jpg,2'; needed a name and 0 or 1: 0000.jpg,0"


def test_a_name_with_two_labels(root: Path) -> None:
    table = root / "tn3k" / "label4trainval.csv"
    table.write_text(table.read_text() + "0001.jpg,1\n")
    assert len(rows_of(root)) == 16
    table.write_text(table.read_text() + "0001.jpg,0\n")
    line = len(table.read_text().splitlines())
    assert refusal(root) == (
        f"tn3k: {table} line {line} says that 0001.jpg is benign, a line above that it is malignant; "
        "needed one label: copy it anew"
    )


def test_labels_in_another_encoding(root: Path) -> None:
    table = root / "tn3k" / "label4trainval.csv"
    table.write_text(table.read_text(), encoding="utf-16")
    assert refusal(root) == f"{table} cannot be read as text in UTF-8: open it and save it as CSV UTF-8"
