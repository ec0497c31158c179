"""Any other database: a CSV or Parquet table with the manifest's columns."""

import difflib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from data.databases.base import About, Database, Row, UserPath
from data.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = tuple(field.name for field in fields(Row))
NEEDED = ("image", "prompts", "label")
OPTIONAL = tuple(name for name in COLUMNS if name not in NEEDED)
# Columns of a manifest that `prepare` wrote: it finds them anew.
FOUND_ANEW = {"database", "sha256", "masks_sha256", "width", "height", "cluster", "crop"}
SEPARATOR = "|"


class ManifestFile(Database):
    """A table with a row an image, for a database that has no adapter."""

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
        """Yield the table's rows in its order."""
        for number, values in enumerate(self._read().to_dict("records"), start=1):
            given = {str(name): value for name, value in values.items() if _is_given(value)}
            absent = [name for name in NEEDED if name not in given and (name != "prompts" or self.prompts is None)]
            if absent:
                raise DataError(f"manifest: row {number} of {self.path} has no {absent[0]}; every row needs one")
            yield self._row(given)

    def _read(self) -> "pd.DataFrame":
        import pandas as pd

        if not self.path.is_file():
            raise DataError(f"manifest: there is no file {self.path}; needed a CSV or Parquet: set path")
        suffix = self.path.suffix.lower()
        if suffix not in (".csv", ".parquet"):
            raise DataError(f"manifest: {self.path} is neither .csv nor .parquet: convert it")
        try:
            if suffix == ".csv":
                # An empty cell is a missing value; "None" and "NA" are labels like any other.
                table = pd.read_csv(self.path, dtype=str, keep_default_na=False, na_values=[""])
            else:
                table = pd.read_parquet(self.path)
        except (ValueError, OSError) as error:
            raise DataError(f"manifest: {self.path} cannot be read: {str(error).splitlines()[0]}") from error
        self._check_columns([str(name) for name in table.columns])
        return table

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

    def _row(self, given: dict[str, Any]) -> Row:
        folder = self.path.parent.absolute()
        label, image = str(given["label"]), str(given["image"])
        optional = {
            name: str(given[name])
            for name in ("organ", "pathology", "view", "patient", "split", "licence")
            if name in given
        }
        attributes = _attributes(given.get("attributes"), self.path)
        filled = attributes | {name: optional.get(name) for name in ("organ", "pathology", "view")}
        masks = _texts(given.get("masks"))
        classes = _classes(given.get("mask_classes"), self.path)
        return Row(
            id=str(given.get("id", image)),
            image=folder / image,
            prompts=self.fill_prompts(label=label, **filled) if self.prompts else _texts(given["prompts"]),
            label=label,
            masks=tuple(folder / mask for mask in masks),
            mask_classes=classes or ({255: "lesion"} if masks else {}),
            attributes=attributes,
            flags=_texts(given.get("flags")),
            **optional,
        )


def _is_given(value: Any) -> bool:
    """Tell a value from an empty cell: nothing, an empty text, an empty list."""
    import pandas as pd

    return len(value) > 0 if hasattr(value, "__len__") else not pd.isna(value)


def _texts(value: Any) -> tuple[str, ...]:
    """Return a cell with several texts: a list in Parquet, joined by a separator in CSV."""
    if value is None:
        return ()
    return tuple(value.split(SEPARATOR)) if isinstance(value, str) else tuple(str(text) for text in value)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Return a cell of pairs: a map in Parquet, '1=ventricle|2=myocardium' in CSV."""
    if isinstance(value, str):
        return [(pair.partition("=")[0], pair.partition("=")[2]) for pair in _texts(value)]
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
