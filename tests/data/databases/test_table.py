"""Tables are read as text, and one that is not what its name says is refused in a line."""

from pathlib import Path

import pandas as pd
import pytest

from data.databases.table import read_lines, read_rows, read_text
from data.errors import DataError

SAVE_AS_XLSX = ": download it again, or open it and save it as .xlsx"
SAVE_AS_CSV = "cannot be read as text in UTF-8: open it and save it as CSV UTF-8"


def write(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def rows_of(path: Path, separator: str = ",") -> list[dict[str, str]]:
    return list(read_rows(path, ("ID", "Case"), separator=separator))


def refusal(path: Path, separator: str = ",") -> str:
    with pytest.raises(DataError) as refused:
        rows_of(path, separator)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_cells_are_text_without_spaces(tmp_path: Path, end: str) -> None:
    lines = ['\ufeffID , Case,"Note"', "007, NA ,", 'b,1.0," one, two "', "c"]
    assert rows_of(write(tmp_path, end.join(lines))) == [
        {"ID": "007", "Case": "NA", "Note": ""},
        {"ID": "b", "Case": "1.0", "Note": "one, two"},
        {"ID": "c", "Case": "", "Note": ""},
    ]


def test_empty_rows_and_nameless_columns_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, ",ID,Case,\n0,a,1,\n,,,\n\n , ,\n1,b,2,,,\n")
    assert rows_of(path) == [{"ID": "a", "Case": "1"}, {"ID": "b", "Case": "2"}]


def test_emptied_rows_of_excel_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "table.xlsx"
    pd.DataFrame([["ID", "Case"], [None, None], [1, "None"], [" ", ""], [2.5, "NA"]]).to_excel(
        path, header=False, index=False
    )
    assert rows_of(path) == [{"ID": "1", "Case": "None"}, {"ID": "2.5", "Case": "NA"}]


def test_a_row_with_more_cells_than_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "ID,Case\na,1\nb,oval, smooth\n")
    message = "line 3 has 3 cells, its header 2: put a cell that has ',' in it between double quotes"
    assert refusal(path) == f"{path} {message}"


@pytest.mark.parametrize(("text", "is_", "needed"), [("ID;Case\na;1\n", ";", ","), ("ID\tCase\na\t1\n", "\t", ";")])
def test_another_separator(tmp_path: Path, text: str, is_: str, needed: str) -> None:
    path = write(tmp_path, text)
    message = f"lacks the column ID: its cells seem to be separated by {is_!r}, needed {needed!r}"
    assert refusal(path, needed) == f"{path} {message}"


def test_a_missing_column(tmp_path: Path) -> None:
    path = write(tmp_path, "ID,Fall\na,1\n")
    assert refusal(path) == f"{path} lacks the column Case (found ID, Fall)"
    assert refusal(write(tmp_path, "")) == f"{path} lacks the column ID (found nothing)"


def test_a_column_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "ID,Case,Case\na,1,2\n")
    assert refusal(path) == f"{path} has the column Case 2 times; needed once: remove the others"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_another_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("ID,Case\n\u00e4,1\n".encode(encoding))
    assert refusal(path) == f"{path} {SAVE_AS_CSV}"


def test_a_quote_that_is_not_closed(tmp_path: Path) -> None:
    path = write(tmp_path, 'ID,Case\na,"1\nb,2\n')
    message = "cannot be read as a table: unexpected end of data: open it and save it as CSV UTF-8"
    assert refusal(path) == f"{path} {message}"


def test_no_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert refusal(path) == f"there is no table {path}; needed one with the columns ID, Case"


@pytest.mark.parametrize("kind", ["cut off", "another zip", "empty", "HTML", "old Excel"])
def test_what_is_no_excel_table(tmp_path: Path, kind: str) -> None:
    import zipfile

    path = tmp_path / "table.xlsx"
    pd.DataFrame({"ID": [1], "Case": [2]}).to_excel(path, index=False)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "a")
    else:
        path.write_bytes({"empty": b"", "HTML": b"<html>\nlog in", "old Excel": b"\xd0\xcf\x11\xe0" * 200}[kind])
    message = refusal(path)
    assert message.startswith(f"{path} cannot be read as an Excel table (")
    assert message.endswith(SAVE_AS_XLSX)


def test_lines_are_counted_as_they_lie(tmp_path: Path) -> None:
    assert list(read_lines(write(tmp_path, "a\n\n b , c \n"))) == [(1, ["a"]), (3, ["b", "c"])]


def test_text_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa\n")
    assert read_text(path) == "a\n"
    path.write_bytes(b"\xe4")
    with pytest.raises(DataError, match="cannot be read as text in UTF-8: open it and save it as text in UTF-8"):
        read_text(path)
