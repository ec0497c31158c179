"""Tables of databases: CSV and Excel as text, with their columns checked."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data.errors import DataError


def read_rows(path: Path, columns: Sequence[str], *, separator: str = ",") -> Iterator[dict[str, str]]:
    """Yield the rows of a .csv or .xlsx (its first sheet) as text, without spaces around names and values.

    An empty cell is ''. columns: names that must be there. Raises: DataError if the file or a column is not.
    """
    import pandas as pd

    if not path.is_file():
        raise DataError(f"there is no table {path}; needed one with the columns {', '.join(columns)}")
    try:
        # "None" and "NA" are values like any other.
        if path.suffix.lower() == ".xlsx":
            table = pd.read_excel(path, dtype=str, keep_default_na=False)
        else:
            table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error
    table.columns = [str(name).strip() for name in table.columns]
    if missing := [name for name in columns if name not in table.columns]:
        raise DataError(f"{path} lacks the column {missing[0]} (found {', '.join(table.columns)})")
    for row in table.to_dict("records"):
        yield {str(name): str(value).strip() for name, value in row.items()}
