"""The layout of BrEaST is read as it is, and refused when it is another one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.databases import Breast, Row
from data.errors import DataError
from tests.data.databases.fixtures.breast import FOLDER, SEED, write_breast
from tests.data.databases.fixtures.pictures import lesion, pictures
from tests.data.databases.fixtures.row_mask import row_mask
from tests.data.databases.made_by_rows import faults_of

TABLE = "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_breast(tmp_path)


def rows_of(root: Path) -> list[Row]:
    return list(Breast(root=root).rows(root.parent / "workspace"))


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        rows_of(root)
    return str(refused.value)


def set_cell(root: Path, case: int, column: str, value: str | None) -> Path:
    table = pd.read_excel(root / TABLE, dtype=object)
    table.loc[case - 1, column] = value
    table.to_excel(root / TABLE, index=False)
    return root / TABLE


def test_rows_are_cases(root: Path) -> None:
    rows = rows_of(root)
    assert [row.id for row in rows] == [f"case{case:03d}" for case in range(1, 16)]
    assert Counter(row.label for row in rows) == {"benign": 5, "malignant": 5, "normal": 5}
    assert (rows[0].organ, rows[0].pathology, rows[0].patient, rows[0].split) == ("breast", "benign", None, None)


def test_descriptors_are_words(root: Path) -> None:
    benign, malignant, normal = rows_of(root)[:3]
    assert benign.attributes == {
        "tissue": "homogeneous, fat",
        "symptoms": "family history of breast/ovarian cancer",
        "shape": "oval",
        "margin": "circumscribed",
        "echogenicity": "hypoechoic",
        "posterior": "posterior enhancement",
        "interpretation": "fibroadenoma",
        "birads": "BI-RADS 3",
    }
    assert malignant.attributes == {
        "tissue": "heterogeneous, predominantly fat",
        "signs": "palpable",
        "shape": "irregular",
        "margin": "spiculated and angular",
        "echogenicity": "complex cystic/solid",
        "posterior": "posterior enhancement and shadowing",
        "halo": "echogenic halo",
        "calcifications": "calcifications in a mass",
        "skin": "skin thickening",
        "interpretation": "suspicion of malignancy and dysplasia",
        "birads": "BI-RADS 4c",
        "diagnosis": "invasive carcinoma of no special type (nst)",
    }
    assert normal.attributes == {"birads": "BI-RADS 1"}


def test_prompts_are_those_that_the_descriptors_fill(root: Path) -> None:
    benign, malignant, normal = rows_of(root)[:3]
    assert benign.prompts == (
        "Ultrasound image of benign breast",
        "Breast ultrasound of a benign lesion, oval, circumscribed margin, BI-RADS 3",
        "Breast ultrasound, oval hypoechoic mass, circumscribed margin",
        "Breast ultrasound of a benign lesion, hypoechoic, posterior enhancement",
    )
    assert len(malignant.prompts) == 6
    assert normal.prompts == ("Ultrasound image of normal breast",)


def test_masks_are_in_the_alpha_channel_and_united(root: Path) -> None:
    rows = rows_of(root)
    for row, made in zip(rows, pictures([row.label for row in rows], SEED), strict=True):
        if row.label == "normal":
            assert (row.masks, row.mask_classes) == ((), {})
        else:
            assert np.array_equal(row_mask(row), lesion(made))
    assert [mask.name for mask in rows[1].masks] == ["case002_tumor.png", "case002_other1.png", "case002_other2.png"]


def test_a_template_may_name_a_descriptor(root: Path) -> None:
    database = Breast(root=root, prompts=("{label} breast", "{halo}, {skin}"))
    assert [row.prompts for row in database.rows(root / "w")][:2] == [
        ("benign breast",),
        ("malignant breast", "echogenic halo, skin thickening"),
    ]


def test_a_mask_without_an_alpha_channel(root: Path) -> None:
    path = root / FOLDER / "case001_tumor.png"
    with Image.open(path) as mask:
        mask.convert("RGB").save(path)
    message = f"{path} has no transparent pixel; needed a mask in its alpha channel: unpack the download again"
    assert faults_of(rows_of(root)) == {"case001": message}


def test_another_class(root: Path) -> None:
    table = set_cell(root, 4, "Classification", "unsure")
    known = "benign, malignant, normal"
    assert refusal(root) == f"{table}: Classification of case004 is 'unsure', needed one of: {known}"


def test_another_category(root: Path) -> None:
    table = set_cell(root, 4, "BIRADS", "4d")
    categories = "0, 1, 2, 3, 4, 4a, 4b, 4c, 5, 6"
    assert refusal(root) == f"{table}: BIRADS of case004 is '4d', needed one of: {categories}"


def test_a_tumour_without_a_mask(root: Path) -> None:
    table = set_cell(root, 4, "Mask_tumor_filename", None)
    (root / FOLDER / "case004_tumor.png").unlink()
    assert refusal(root) == f"{table} has no Mask_tumor_filename for case004; needed one, for it is benign"


def test_a_mask_that_no_case_has(root: Path) -> None:
    table = set_cell(root, 2, "Mask_other_filename", "case002_other1.png")
    stray = root / FOLDER / "case002_other2.png"
    assert refusal(root) == f"{stray} has no row in {table}: add one, or remove the file"


def test_a_missing_mask(root: Path) -> None:
    (root / FOLDER / "case002_other1.png").unlink()
    assert refusal(root) == (
        f"{root / FOLDER} lacks case002_other1, which {root / TABLE} needs (1 of 27 are missing): "
        "unpack the download again"
    )


def test_a_table_without_a_descriptor(root: Path) -> None:
    table = pd.read_excel(root / TABLE, dtype=object)
    table[["CaseID", "Image_filename"]].to_excel(root / TABLE, index=False)
    assert refusal(root) == f"{root / TABLE} lacks the column Mask_tumor_filename (found CaseID, Image_filename)"


def test_no_table(root: Path) -> None:
    (root / TABLE).unlink()
    assert refusal(root) == (
        f"breast: {root} has 0 tables .xlsx (found {FOLDER}/); needed {FOLDER}/case001.png, case001_tumor.png, "
        f"case001_other1.png, {TABLE}: set root, or see `sonoshard databases breast`"
    )
