"""The layout of BUSI is read as it is, and refused when it is another one."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from data.databases import Busi
from data.errors import DataError

LAYOUT = (
    "needed benign/benign (1).png, benign/benign (1)_mask.png, malignant/..., normal/...: "
    "set root, or see `sonoshard databases busi`"
)


@pytest.fixture
def root(busi_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(busi_root, tmp_path / "busi"))


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        list(Busi(root=root).rows(root / "unused"))
    return str(refused.value)


def test_rows_are_images_with_all_their_masks(busi_root: Path) -> None:
    rows = list(Busi(root=busi_root).rows(busi_root / "unused"))
    assert Counter(row.label for row in rows) == {"benign": 6, "malignant": 6, "normal": 6}
    assert len({row.id for row in rows}) == 18
    third = next(row for row in rows if row.id == "benign (3)")
    assert [mask.name for mask in third.masks] == ["benign (3)_mask.png", "benign (3)_mask_1.png"]
    assert third.prompts == ("Ultrasound image of benign breast",)
    assert (third.organ, third.pathology, third.patient, third.split) == ("breast", "benign", None, None)
    assert third.mask_classes == {255: "lesion"}


def test_numbers_are_in_order(root: Path) -> None:
    shutil.copy(root / "benign" / "benign (1).png", root / "benign" / "benign (10).png")
    shutil.copy(root / "benign" / "benign (1)_mask.png", root / "benign" / "benign (10)_mask.png")
    ids = [row.id for row in Busi(root=root).rows(root) if row.label == "benign"]
    assert ids[:2] == ["benign (1)", "benign (2)"]
    assert ids[-1] == "benign (10)"


def test_a_normal_image_needs_no_mask(root: Path) -> None:
    (root / "normal" / "normal (2)_mask.png").unlink()
    row = next(row for row in Busi(root=root).rows(root) if row.id == "normal (2)")
    assert row.masks == ()
    assert row.mask_classes == {}


def test_a_template_of_the_user_replaces_the_prompt(busi_root: Path) -> None:
    database = Busi(root=busi_root, prompts=("{organ}, {label}", "a {pathology} finding"))
    assert next(iter(database.rows(busi_root))).prompts == ("breast, benign", "a benign finding")


def test_a_template_with_an_unknown_field_is_refused_with_the_config() -> None:
    message = "prompt 'a {lable} breast' names {lable}, needed one of: label, organ, pathology, view"
    with pytest.raises(ValidationError, match=re.escape(message)):
        Busi(root=Path("unused"), prompts=("a {lable} breast",))


def test_a_template_with_a_field_that_busi_lacks_is_refused(busi_root: Path) -> None:
    message = "prompt '{view} view' needs {view}, which an image of this database lacks"
    with pytest.raises(DataError, match=re.escape(message)):
        list(Busi(root=busi_root, prompts=("{view} view",)).rows(busi_root))


def test_no_folder(tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    assert refusal(root) == f"busi: there is no folder {root}; {LAYOUT}"


def test_the_folder_above(root: Path) -> None:
    assert refusal(root.parent) == (f"busi: {root.parent} lacks benign, malignant, normal (found busi/); {LAYOUT}")


def test_a_folder_with_other_names(root: Path) -> None:
    for path in (root / "malignant").iterdir():
        path.unlink()
    (root / "malignant" / "scan1.jpg").touch()
    assert refusal(root) == f"busi: {root}/malignant has no 'malignant (1).png' (found scan1.jpg); {LAYOUT}"


def test_an_image_with_another_name(root: Path) -> None:
    stray = (root / "benign" / "benign (1).png").rename(root / "benign" / "benign_1.png")
    assert refusal(root) == f"busi: {stray} is not named like 'benign (1).png' or 'benign (1)_mask.png'"


def test_a_lesion_without_a_mask(root: Path) -> None:
    (root / "benign" / "benign (2)_mask.png").unlink()
    image = root / "benign" / "benign (2).png"
    assert refusal(root) == f"busi: {image} has no mask; needed benign (2)_mask.png beside it"


def test_a_mask_without_an_image(root: Path) -> None:
    (root / "benign" / "benign (2).png").unlink()
    mask = root / "benign" / "benign (2)_mask.png"
    assert refusal(root) == f"busi: {mask} belongs to no image; needed 'benign (2).png'"


def test_extensions_may_be_in_any_case(root: Path) -> None:
    folder = root / "benign"
    before = len(list(Busi(root=root).rows(root)))
    (folder / "benign (1).png").rename(folder / "benign (1).PNG")
    (folder / "benign (1)_mask.png").rename(folder / "benign (1)_mask.Png")
    (folder / "._benign (2).png").touch()
    rows = {row.id: row for row in Busi(root=root).rows(root)}
    assert len(rows) == before
    assert folder / "benign (1)_mask.Png" in rows["benign (1)"].masks


@pytest.mark.parametrize("name", ["benign (01).png", "benign (1).PNG"])
def test_two_images_of_a_number(root: Path, name: str) -> None:
    first = root / "benign" / "benign (1).png"
    (root / "benign" / name).write_bytes(first.read_bytes())
    first, second = sorted((first, root / "benign" / name))
    assert refusal(root) == f"busi: {first} and {second} have one number; needed one image of it: remove the other"


def test_a_file_in_a_folders_place(root: Path) -> None:
    (root / "normal").rename(root / "elsewhere")
    (root / "normal").touch()
    assert refusal(root) == f"busi: {root}/normal is a file, needed a folder; {LAYOUT}"
    assert refusal(root / "normal") == f"busi: {root}/normal is a file; {LAYOUT}"
