"""The layout of BUS-BRA is read as it is, and refused when it is another one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.databases import BusBra
from data.errors import DataError
from tests.data.databases.fixtures.bus_bra import SEED, write_bus_bra
from tests.data.databases.fixtures.pictures import lesion, pictures
from tests.data.databases.fixtures.row_mask import row_mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bus_bra(tmp_path)


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        list(BusBra(root=root).rows(root / "unused"))
    return str(refused.value)


def in_table(root: Path, old: str, new: str) -> Path:
    table = root / "bus_data.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    return table


def test_rows_are_views_of_cases(root: Path) -> None:
    rows = list(BusBra(root=root).rows(root / "unused"))
    assert Counter(row.label for row in rows) == {"benign": 8, "malignant": 8}
    assert [(row.id, row.patient) for row in rows[:3]] == [
        ("bus_0001-l", "1"),
        ("bus_0001-r", "1"),
        ("bus_0002-l", "2"),
    ]
    assert len({row.patient for row in rows}) == 10
    first = rows[0]
    assert first.prompts == (
        "Ultrasound image of malignant breast",
        "Breast ultrasound of a malignant lesion, BI-RADS 5",
        "Breast ultrasound, invasive ductal carcinoma, BI-RADS 5",
    )
    assert first.attributes == {
        "histology": "invasive ductal carcinoma",
        "birads": "BI-RADS 5",
        "device": "Toshiba Aplio 300 @12-14 MHz",
        "side": "left",
    }
    assert (first.organ, first.pathology, first.split, first.flags) == ("breast", "malignant", None, ())


def test_masks_are_those_of_their_images(root: Path) -> None:
    rows = list(BusBra(root=root).rows(root / "unused"))
    for row, made in zip(rows, pictures([row.label for row in rows], SEED), strict=True):
        assert np.array_equal(row_mask(row), lesion(made))


def test_an_unknown_histology_is_left_out(root: Path) -> None:
    in_table(root, "invasive ductal carcinoma", "")
    first = next(iter(BusBra(root=root).rows(root / "unused")))
    assert "histology" not in first.attributes
    assert len(first.prompts) == 2


def test_no_table(root: Path) -> None:
    (root / "bus_data.csv").unlink()
    assert refusal(root) == (
        f"bus-bra: {root} lacks bus_data.csv (found 5-fold-cv.csv, Images/, Masks/); needed Images/bus_0001-l.png, "
        "Masks/mask_0001-l.png, bus_data.csv with ID, Case, Histology, Pathology, BIRADS, Device, Side: set root, or "
        "see `sonoshard databases bus-bra`"
    )


def test_a_table_without_the_patients(root: Path) -> None:
    table = in_table(root, "Case", "Patient")
    found = "ID, Patient, Histology, Pathology, BIRADS, Device, Width, Height, Side, BBOX"
    assert refusal(root) == f"{table} lacks the column Case (found {found})"


def test_another_pathology(root: Path) -> None:
    table = in_table(root, "malignant", "unsure")
    assert refusal(root) == f"{table}: Pathology of bus_0001-l is 'unsure', needed one of: benign, malignant"


def test_another_category(root: Path) -> None:
    table = in_table(root, "malignant,5", "malignant,7")
    categories = "0, 1, 2, 3, 4, 4a, 4b, 4c, 5, 6"
    assert refusal(root) == f"{table}: BIRADS of bus_0001-l is '7', needed one of: {categories}"


def test_a_missing_image(root: Path) -> None:
    (root / "Images" / "bus_0003-r.png").unlink()
    assert refusal(root) == (
        f"{root}/Images lacks bus_0003-r, which {root}/bus_data.csv needs (1 of 16 are missing): "
        "unpack the download again"
    )


def test_a_missing_mask(root: Path) -> None:
    (root / "Masks" / "mask_0003-r.png").unlink()
    assert refusal(root) == (
        f"{root}/Masks lacks mask_0003-r, which {root}/bus_data.csv needs (1 of 16 are missing): "
        "unpack the download again"
    )


def test_a_mask_without_an_image(root: Path) -> None:
    stray = root / "Masks" / "mask_0099-s.png"
    stray.write_bytes((root / "Masks" / "mask_0001-l.png").read_bytes())
    assert refusal(root) == f"{stray} has no row in {root}/bus_data.csv: add one, or remove the file"
