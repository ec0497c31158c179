"""Any other database: a CSV or Parquet table with the manifest's columns."""

import difflib
import numbers
from collections.abc import Collection, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from data.databases.base import About, Database, Row, UserPath
from data.databases.table import numbered_rows
from data.errors import DataError
from data.quality.rules import FAULTS
from data.splits import known_split

# A fault is found when files are read, and no table tells it.
COLUMNS = tuple(field.name for field in fields(Row) if field.name != "fault")
NEEDED = ("image", "prompts", "label")
OPTIONAL = tuple(name for name in COLUMNS if name not in NEEDED)
# Columns of a manifest that `prepare` wrote: it finds them anew.
FOUND_ANEW = {"database", "sha256", "likeness", "masks_sha256", "width", "height", "cluster", "crop"}
SEPARATOR = "|"
LISTS = ("prompts", "masks", "flags")
TEXTS = tuple(name for name in COLUMNS if name not in (*LISTS, "mask_classes", "attributes"))


class ManifestFile(Database):
    """A table with one row per image, for a database that has no adapter."""

    about: ClassVar[About] = About(
        title="Any other database, by a table of its images",
        layout=("a .csv or .parquet with the columns image, prompts, label, and any of: " + ", ".join(OPTIONAL),),
        labels="the column label",
        masks="the column masks; its values mean what mask_classes says, or, without it, a lesion from 128 on",
        patients="the column patient; without it, near-duplicates share a split",
        licence="the column licence",
        citation="yours",
    )
    attributes: ClassVar[tuple[str, ...] | None] = None

    kind: Literal["manifest"] = "manifest"
    path: UserPath = Field(
        description="CSV or Parquet with the columns image, prompts, label and, if known, id, masks, mask_classes, "
        "organ, pathology, view, attributes, patient, split, licence, flags. Paths are relative to the table. In a "
        "CSV, several prompts, masks or flags are joined by '|', mask_classes reads '1=ventricle|2=myocardium', "
        "and attributes 'shape=oval|margin=circumscribed'."
    )

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield the table's rows in its order; all of it is checked before the first."""
        yield from [self._row(number, values) for number, values in self._read()]

    def _read(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the rows' cells that are not empty, by column, each row with its number from 1."""
        if not self.path.is_file():
            raise DataError(f"manifest: there is no file {self.path}; needed a CSV or Parquet: set path")
        suffix = self.path.suffix.lower()
        if suffix not in (".csv", ".parquet"):
            raise DataError(f"manifest: {self.path} is neither .csv nor .parquet: convert it")
        table = self._read_csv() if suffix == ".csv" else self._read_parquet()
        return [
            (number, {name: value for name, value in values.items() if _is_given(value)}) for number, values in table
        ]

    def _read_csv(self) -> list[tuple[int, dict[str, Any]]]:
        needed = [name for name in NEEDED if name != "prompts" or self.prompts is None]
        # "None" and "NA" are labels like any other. The header is line 1 for a spreadsheet, and no row here.
        try:
            table = [(number - 1, row) for number, row in numbered_rows(self.path, needed)]
        except DataError as error:
            raise DataError(f"manifest: {error}") from error
        self._check_columns(list(table[0][1]) if table else needed)
        return table

    def _read_parquet(self) -> list[tuple[int, dict[str, Any]]]:
        import pandas as pd

        try:
            table = pd.read_parquet(self.path)
        except (ValueError, OSError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise DataError(f"manifest: {self.path} cannot be read: {reason}") from error
        self._check_columns([str(name) for name in table.columns])
        rows = table.to_dict("records")
        return [(number, {str(name): value for name, value in row.items()}) for number, row in enumerate(rows, start=1)]

    def _check_columns(self, names: list[str]) -> None:
        needed = [name for name in NEEDED if name != "prompts" or self.prompts is None]
        if missing := [name for name in needed if name not in names]:
            raise DataError(f"manifest: {self.path} lacks the column {missing[0]} (found {', '.join(names)})")
        # A misspelt `patient` would leak patients, so that no column is passed over in silence.
        for name in names:
            if name not in COLUMNS and name not in FOUND_ANEW:
                nearest = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0)[0]
                known = ", ".join(COLUMNS)
                raise DataError(f"manifest: {self.path} has a column {name}; nearest known: {nearest}, of {known}")

    def _row(self, number: int, given: dict[str, Any]) -> Row:
        texts = {name: text for name in TEXTS if (text := _text(given.get(name)))}
        lists = {name: found for name in LISTS if (found := _texts(given.get(name)))}
        known = texts.keys() | lists.keys()
        if absent := [name for name in NEEDED if name not in known and (name != "prompts" or self.prompts is None)]:
            raise DataError(f"manifest: row {number} of {self.path} has no {absent[0]}; every row needs one")
        try:
            known_split(texts.get("split", "train"))
        except DataError as error:
            raise DataError(f"manifest: row {number} of {self.path}: {error}") from error
        folder = self.path.parent.absolute()
        label, image = texts.pop("label"), texts.pop("image")
        id_ = texts.pop("id", image)
        attributes = _attributes(given.get("attributes"), self.path)
        filled = attributes | {name: texts.get(name) for name in ("organ", "pathology", "view")}
        masks = lists.get("masks", ())
        classes = _classes(given.get("mask_classes"), self.path)
        return Row(
            id=id_,
            image=folder / image,
            prompts=self.fill_prompts(label=label, **filled) if self.prompts else lists["prompts"],
            label=label,
            masks=tuple(folder / mask for mask in masks),
            mask_classes=classes or ({255: "lesion"} if masks else {}),
            attributes=attributes,
            flags=tuple(flag for flag in lists.get("flags", ()) if not _is_found_anew(flag, given)),
            **texts,
        )


def _is_given(value: Any) -> bool:
    """Tell a value from an empty cell: nothing, an empty text, an empty list."""
    import pandas as pd

    return len(value) > 0 if hasattr(value, "__len__") else not pd.isna(value)


def _is_found_anew(flag: str, given: Collection[str]) -> bool:
    """Tell whether `prepare` wrote a flag, and finds it again if it is still so; a hash is in no other table."""
    return flag in FAULTS and "sha256" in given


def _text(value: Any) -> str:
    """Return a cell as text, without spaces around it; '' if it is empty.

    A column of integers in which some are missing is one of floats in Parquet: 1.0 is '1'.
    """
    if value is None:
        return ""
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value).is_integer():
        return str(int(float(value)))
    return str(value).strip()


def _texts(value: Any) -> tuple[str, ...]:
    """Return a cell with several texts: a list in Parquet, joined by a separator in CSV; empty ones are left out."""
    if value is None:
        return ()
    parts = value.split(SEPARATOR) if isinstance(value, str) else value
    return tuple(text for text in map(_text, parts) if text)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Return a cell of pairs: a map in Parquet, '1=ventricle|2=myocardium' in CSV."""
    if isinstance(value, str):
        return [(name.strip(), word.strip()) for name, _, word in (pair.partition("=") for pair in _texts(value))]
    return [] if value is None else list(value)


def _attributes(value: Any, path: Path) -> dict[str, str]:
    attributes = {str(name): str(word) for name, word in _pairs(value)}
    if any(not name.isidentifier() or not word for name, word in attributes.items()):
        raise DataError(
            f"manifest: {path} has attributes {value!r}, needed the like of 'shape=oval|margin=circumscribed'"
        )
    return attributes


def _classes(value: Any, path: Path) -> dict[int, str]:
    try:
        classes = {int(number): str(name) for number, name in _pairs(value)}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"manifest: {path} has mask_classes {value!r}, needed the like of '1=ventricle|2=myocardium'"
        ) from error
    if any(not 1 <= number <= 255 or not name for number, name in classes.items()):
        raise DataError(f"manifest: {path} has mask_classes {value!r}, needed names of the values 1 to 255")
    return classes
