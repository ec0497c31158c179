"""The layout of MMOTU is read as it is, and refused when it is another one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.databases import Mmotu
from data.databases.mmotu import LABELS
from data.errors import DataError
from tests.data.databases.fixtures.mmotu import SEED, write_mmotu
from tests.data.databases.fixtures.pictures import lesion, pictures
from tests.data.databases.fixtures.row_mask import row_mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mmotu(tmp_path)


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        list(Mmotu(root=root).rows(root / "unused"))
    return str(refused.value)


def in_list(root: Path, old: str, new: str) -> Path:
    path = root / "train_cls.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_rows_are_the_lists(root: Path) -> None:
    rows = list(Mmotu(root=root).rows(root.parent / "workspace"))
    assert [(row.id, row.label) for row in rows[:8]] == [(str(n + 1), label) for n, label in enumerate(LABELS)]
    assert Counter(row.split for row in rows) == {"train": 16, "validation": 8}
    assert rows[2].image.name == "3.JPG"
    assert rows[2].prompts == ("Ultrasound image of the ovary, teratoma", "Ovarian ultrasound, teratoma")
    assert (rows[2].organ, rows[2].pathology, rows[2].patient) == ("ovary", "teratoma", None)
    assert (rows[5].label, rows[5].pathology) == ("normal ovary", "normal")


def test_what_is_painted_has_the_class_of_the_label(root: Path) -> None:
    rows = list(Mmotu(root=root).rows(root.parent / "workspace"))
    for row, made in zip(rows, pictures(["benign", "malignant"] * 12, SEED), strict=True):
        number = LABELS.index(row.label) + 1
        assert np.array_equal(row_mask(row, LABELS), number * lesion(made))


def test_a_mask_without_a_palette_is_read(root: Path) -> None:
    path = root / "annotations" / "1_binary.PNG"
    with Image.open(path) as mask:
        mask.convert("RGB").save(path)
    made = next(pictures(["benign"], SEED))
    assert np.array_equal(row_mask(next(Mmotu(root=root).rows(root / "w")), LABELS), lesion(made))


def test_the_class_may_be_separated_by_any_space(root: Path) -> None:
    in_list(root, "3.JPG  2\n", "3.JPG\t2 \n\n")
    assert [row.label for row in Mmotu(root=root).rows(root / "w")][2] == "teratoma"


def test_another_class(root: Path) -> None:
    path = in_list(root, "3.JPG  2", "3.JPG  8")
    assert refusal(root) == f"{path}: the class of 3.JPG is '8', needed one of: 0, 1, 2, 3, 4, 5, 6, 7"


def test_a_line_without_a_class(root: Path) -> None:
    path = in_list(root, "3.JPG  2", "3.JPG")
    assert refusal(root) == f"{path} has line 3 '3.JPG', needed the like of '1.JPG  0'"


def test_an_image_in_both_lists(root: Path) -> None:
    in_list(root, "3.JPG  2", "3.JPG  2\n24.JPG  7")
    assert refusal(root) == f"{root}/*_cls.txt has 2 rows of 24; needed one: remove the wrong ones"


def test_an_image_in_no_list(root: Path) -> None:
    in_list(root, "3.JPG  2\n", "")
    assert refusal(root) == f"{root}/images/3.JPG has no row in {root}/*_cls.txt: add one, or remove the file"


def test_a_mask_without_an_image(root: Path) -> None:
    stray = root / "annotations" / "99_binary.PNG"
    stray.write_bytes((root / "annotations" / "1_binary.PNG").read_bytes())
    assert refusal(root) == f"{stray} has no row in {root}/*_cls.txt: add one, or remove the file"


def test_no_binary_masks(root: Path) -> None:
    for path in (root / "annotations").glob("*_binary.PNG"):
        path.unlink()
    assert refusal(root) == (
        f"{root}/annotations lacks 1_binary, which {root}/*_cls.txt needs (24 of 24 are missing): "
        "unpack the download again"
    )


def test_the_folder_above(root: Path) -> None:
    assert refusal(root.parent) == (
        f"mmotu: {root.parent} lacks images, annotations, train_cls.txt, val_cls.txt (found OTU_2d/); needed "
        "images/1.JPG, annotations/1_binary.PNG, train_cls.txt with lines like 1.JPG  0, val_cls.txt: set root, or see "
        "`sonoshard databases mmotu`"
    )
