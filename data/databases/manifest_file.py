"""Any other database: a CSV or Parquet table with the manifest's columns."""

import difflib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from data.databases.base import Database, Row, UserPath
from data.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = tuple(field.name for field in fields(Row))
NEEDED = ("image", "prompts", "label")
# Columns of a manifest that `prepare` wrote: it finds them anew.
FOUND_ANEW = {"database", "sha256", "masks_sha256", "width", "height", "cluster"}
SEPARATOR = "|"


class ManifestFile(Database):
    """A table with a row an image, for a database that has no adapter."""

    default_prompts: ClassVar[tuple[str, ...]] = ()

    kind: Literal["manifest"] = "manifest"
    path: UserPath = Field(
        description="CSV or Parquet with the columns image, prompts, label and, if known, id, masks, mask_classes, "
        "organ, pathology, view, patient, split, licence, flags. Paths are relative to the table. In a CSV, several "
        "prompts, masks or flags are joined by '|', and mask_classes reads '1=ventricle|2=myocardium'."
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
        filled = {name: optional.get(name) for name in ("organ", "pathology", "view")}
        masks = _texts(given.get("masks"))
        classes = _classes(given.get("mask_classes"), self.path)
        return Row(
            id=str(given.get("id", image)),
            image=folder / image,
            prompts=self.fill_prompts(label=label, **filled) if self.prompts else _texts(given["prompts"]),
            label=label,
            masks=tuple(folder / mask for mask in masks),
            mask_classes=classes or ({255: "lesion"} if masks else {}),
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


def _classes(value: Any, path: Path) -> dict[int, str]:
    """Return a cell of pixel values and their classes: a map in Parquet, '1=ventricle|2=myocardium' in CSV."""
    pairs = [pair.partition("=")[::2] for pair in _texts(value)] if isinstance(value, str) else value
    try:
        classes = {int(number): str(name) for number, name in ([] if pairs is None else pairs)}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"manifest: {path} has mask_classes {value!r}, needed the like of '1=ventricle|2=myocardium'"
        ) from error
    if any(not 1 <= number <= 255 or not name for number, name in classes.items()):
        raise DataError(f"manifest: {path} has mask_classes {value!r}, needed names of the values 1 to 255")
    return classes
