"""The image files of a folder that a table or a list names."""

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def named_files(
    folder: Path,
    names: Sequence[str],
    listed_in: Path,
    *,
    others: Literal["refuse", "leave out"] = "refuse",
    only: str = ".*",
) -> dict[str, Path]:
    """Return the image files of `folder` for `names`, by name; names lack the extension, which may be in any case.

    Names are compared in Unicode's composed form: macOS stores file names decomposed.
    listed_in: the table that has them, for messages. others: what to do with files that it does not name; they are
    left out with a warning. only: names that do not match this expression as a whole are passed over, as hidden ones.
    Raises: DataError if a name comes twice, a file is missing, two files have one name, or another file is there.
    """
    if not names:
        raise DataError(f"{listed_in} names no images; needed one row per image")
    name, times = Counter(map(_composed, names)).most_common(1)[0]
    if times > 1:
        raise DataError(f"{listed_in} has {times} rows of {name}; needed one: remove the wrong ones")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if (
            path.suffix.lower() not in SUFFIXES
            or path.name.startswith(".")
            or not re.fullmatch(only, _composed(path.stem))
        ):
            continue
        if (other := found.setdefault(_composed(path.stem), path)) != path:
            raise DataError(f"{folder} has {other.name} and {path.name}; needed one file: remove the other")
    if missing := [name for name in names if _composed(name) not in found]:
        raise DataError(
            f"{folder} lacks {missing[0]}, which {listed_in} needs ({len(missing)} of {len(names)} are missing): "
            "unpack the download again"
        )
    wanted = set(map(_composed, names))
    if strangers := [path for name, path in found.items() if name not in wanted]:
        if others == "refuse":
            raise DataError(f"{strangers[0]} has no row in {listed_in}: add one, or remove the file")
        warnings.warn(
            f"{len(strangers)} files have no row in {listed_in} and are left out: {strangers[0]} ...", stacklevel=2
        )
    return {name: found[_composed(name)] for name in names}


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
