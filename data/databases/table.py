"""Tables of databases: CSV and Excel as text, with their columns checked."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.errors import DataError

SEPARATORS = (",", ";", "\t", "|")


def read_rows(path: Path, columns: Sequence[str], *, separator: str = ",") -> Iterator[dict[str, str]]:
    """Yield the rows of a .csv or .xlsx (its first sheet) as text, without spaces around names and values.

    An empty cell is ''; rows that are empty, and columns without a name, are left out. columns: names that must be
    there. Raises: DataError if the file or a column is not, or a row has more cells than there are columns.
    """
    for _, row in numbered_rows(path, columns, separator=separator):
        yield row


def numbered_rows(path: Path, columns: Sequence[str], *, separator: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield what `read_rows` does, each row with the number of its line in a spreadsheet: the header's is 1."""
    if not path.is_file():
        raise DataError(f"there is no table {path}; needed one with the columns {', '.join(columns)}")
    lines = read_lines(path, separator=separator)
    _, names = next(lines, (1, []))
    if missing := [name for name in columns if name not in names]:
        raise DataError(f"{path} lacks the column {missing[0]}{_what_it_has(names, missing[0], separator)}")
    if twice := [name for name in columns if names.count(name) > 1]:
        raise DataError(
            f"{path} has the column {twice[0]} {names.count(twice[0])} times; needed once: remove the others"
        )
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        while name in places:
            name += " (again)"
        if name:
            places[name] = place
    for number, cells in lines:
        if len(cells) > len(names) and any(cells[len(names) :]):
            raise DataError(
                f"{path} line {number} has {len(cells)} cells, its header {len(names)}: "
                f"put a cell that has {separator!r} in it between double quotes"
            )
        yield number, {name: cells[place] if place < len(cells) else "" for name, place in places.items()}


def read_lines(path: Path, *, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a .csv or .xlsx (its first sheet) that are not empty, with their numbers from 1.

    Cells are text, without spaces around it. Raises: DataError if it cannot be read.
    """
    lines = _excel_lines(path) if path.suffix.lower() == ".xlsx" else _csv_lines(path, separator)
    for number, cells in enumerate(lines, start=1):
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            yield number, stripped


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark. Raises: DataError if it is not there, or no UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(_not_utf8(path)) from error
    # UTF-16 of plain letters is UTF-8 too: every other byte of it is 0.
    if "\0" in text:
        raise DataError(_not_utf8(path))
    return text


def _not_utf8(path: Path) -> str:
    save_as = "CSV UTF-8" if path.suffix.lower() == ".csv" else "text in UTF-8"
    return f"{path} cannot be read as text in UTF-8: open it and save it as {save_as}"


def _csv_lines(path: Path, separator: str) -> Iterator[list[str]]:
    try:
        # strict: a quote that is not closed would swallow the rows that follow.
        yield from csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table: {error}: open it and save it as CSV UTF-8") from error


def _excel_lines(path: Path) -> Iterator[list[str]]:
    import pandas as pd

    try:
        # "None" and "NA" are values like any other.
        table = pd.read_excel(path, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    except ImportError:
        raise
    except Exception as error:  # BadZipFile, KeyError, ParseError, InvalidFileException ... on what is no .xlsx
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an Excel table ({reason}): download it again, or open it and save it as .xlsx"
        ) from error
    for cells in table.itertuples(index=False):
        yield [str(cell) for cell in cells]


def _what_it_has(names: Sequence[str], missing: str, separator: str) -> str:
    """Return the end of the message that a column is missing: what separates the cells, or which columns there are."""
    for other in SEPARATORS:
        if other != separator and any(missing in (part.strip() for part in name.split(other)) for name in names):
            return f": its cells seem to be separated by {other!r}, needed {separator!r}"
    return f" (found {', '.join(name for name in names if name) or 'nothing'})"
