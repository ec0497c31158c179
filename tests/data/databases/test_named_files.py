"""A folder's files are matched with a table's names, both ways."""

from pathlib import Path

import pytest

from data.databases.named_files import named_files
from data.errors import DataError

TABLE = Path("table.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.PNG", "a.jpg", ".c.png", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def refusal(folder: Path, names: list[str]) -> str:
    with pytest.raises(DataError) as refused:
        named_files(folder, names, TABLE)
    return str(refused.value)


def test_files_are_in_the_order_of_the_names(folder: Path) -> None:
    assert list(named_files(folder, ["b", "a"], TABLE).items()) == [("b", folder / "b.PNG"), ("a", folder / "a.jpg")]


def test_only_some_names_count(folder: Path) -> None:
    assert named_files(folder, ["a"], TABLE, only="a|d") == {"a": folder / "a.jpg"}


def test_a_name_twice(folder: Path) -> None:
    assert refusal(folder, ["a", "b", "a"]) == "table.csv has 2 rows of a; needed one: remove the wrong ones"


def test_two_files_of_a_name(folder: Path) -> None:
    (folder / "a.png").touch()
    assert refusal(folder, ["a", "b"]) == f"{folder} has a.jpg and a.png; needed one file: remove the other"


def test_names_are_one_whether_composed_or_not(tmp_path: Path) -> None:
    composed, decomposed = "f\u00f6tal", "fo\u0308tal"
    (tmp_path / f"{decomposed}.png").touch()
    assert named_files(tmp_path, [composed], TABLE) == {composed: tmp_path / f"{decomposed}.png"}
    assert named_files(tmp_path, [decomposed], TABLE, only="f.tal") == {decomposed: tmp_path / f"{decomposed}.png"}
    assert refusal(tmp_path, [composed, decomposed]).startswith(f"table.csv has 2 rows of {composed}; needed one")
