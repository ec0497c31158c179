"""The layout of UDIAT is read as it is, and refused when it is another one."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.databases import Udiat
from data.errors import DataError
from tests.data.databases.fixtures.pictures import lesion, pictures
from tests.data.databases.fixtures.row_mask import row_mask
from tests.data.databases.fixtures.udiat import SEED, write_udiat


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_udiat(tmp_path)


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        list(Udiat(root=root).rows(root / "unused"))
    return str(refused.value)


def test_rows_are_the_table_with_six_digits(root: Path) -> None:
    rows = list(Udiat(root=root).rows(root / "unused"))
    assert [row.id for row in rows[:3]] == ["000001", "000002", "000003"]
    assert Counter(row.label for row in rows) == {"benign": 8, "malignant": 4}
    assert rows[2].prompts == ("Ultrasound image of malignant breast", "Breast ultrasound of a malignant lesion")
    assert (rows[2].organ, rows[2].pathology, rows[2].patient) == ("breast", "malignant", None)


def test_masks_are_cut_in_the_middle(root: Path) -> None:
    rows = list(Udiat(root=root).rows(root / "unused"))
    for row, made in zip(rows, pictures([row.label for row in rows], SEED), strict=True):
        assert np.array_equal(row_mask(row), lesion(made))


def test_another_type(root: Path) -> None:
    table = root / "DatasetB.xlsx"
    pd.DataFrame([(1, "Benign"), (2, "Cyst")], columns=["Image", "Type"]).to_excel(table, index=False)
    for folder in ("original", "GT"):
        for number in range(3, 13):
            (root / folder / f"{number:06d}.png").unlink()
    assert refusal(root) == f"{table}: Type of 2 is 'Cyst', needed one of: benign, malignant"


def test_a_table_without_types(root: Path) -> None:
    table = root / "DatasetB.xlsx"
    pd.DataFrame([(1, "Benign")], columns=["Image", "Class"]).to_excel(table, index=False)
    assert refusal(root) == f"{table} lacks the column Type (found Image, Class)"


def test_an_empty_table(root: Path) -> None:
    table = root / "DatasetB.xlsx"
    pd.DataFrame([], columns=["Image", "Type"]).to_excel(table, index=False)
    assert refusal(root) == f"{table} names no images; needed one row per image"


def test_a_missing_image(root: Path) -> None:
    (root / "original" / "000007.png").unlink()
    assert refusal(root) == (
        f"{root}/original lacks 000007, which {root}/DatasetB.xlsx needs (1 of 12 are missing): "
        "unpack the download again"
    )


def test_a_mask_without_an_image(root: Path) -> None:
    stray = root / "GT" / "000013.png"
    stray.write_bytes((root / "GT" / "000001.png").read_bytes())
    assert refusal(root) == f"{stray} has no row in {root}/DatasetB.xlsx: add one, or remove the file"


def test_the_folder_above(root: Path) -> None:
    assert refusal(root.parent) == (
        f"udiat: {root.parent} lacks original, GT, DatasetB.xlsx (found BUS/); needed original/000001.png, "
        "GT/000001.png, DatasetB.xlsx with Image, Type: set root, or see `sonoshard databases udiat`"
    )


def test_a_file_in_a_folders_place(root: Path) -> None:
    shutil.rmtree(root / "original")
    (root / "original").touch()
    assert refusal(root).startswith(f"udiat: {root}/original is a file, needed a folder; needed original/000001.png, ")


def test_a_folder_in_a_files_place(root: Path) -> None:
    (root / "DatasetB.xlsx").unlink()
    (root / "DatasetB.xlsx").mkdir()
    assert refusal(root).startswith(f"udiat: {root}/DatasetB.xlsx is a folder, needed a file; needed original/")
