"""PNG files made from what a database has, so that frames, volumes and outlines are images and masks like others."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.durable import replacing
from data.errors import DataError

# To be raised when an adapter or what it builds with makes another picture of the same files.
VERSION = 1


@dataclass(frozen=True)
class Derived:
    """A PNG that was made. fault: why it could not be, in one line; then there is no file at `path`."""

    path: Path
    fault: str | None = None


def derived_png(
    path: Path, sources: Sequence[Path], make: Callable[[], NDArray[np.uint8]], *, also_from: object = None
) -> Derived:
    """Return the PNG at `path` of the array [H, W] or [H, W, 3] that `make` returns.

    It is made anew unless a record beside it says that it was made of the same: this VERSION, the absolute path, size
    and date of each of `sources`, and `also_from`, whatever else it depends on, as JSON can hold it. The record is a
    file of its own, so that equal pictures are equal files wherever their sources lie: shards and duplicates are found
    by the hash of the file. A DataError of `make` is the fault of what is returned, so that `prepare` can skip the
    image.
    """
    from PIL import Image

    record = path.with_suffix(".made_from.json")
    try:
        made_from = _made_from(sources, also_from)
        if not _is_made_from(path, record, made_from):
            picture = Image.fromarray(make())
            record.unlink(missing_ok=True)
            with replacing(path) as temporary:
                picture.save(temporary, format="PNG")
            # Last: without a record, or with half of one, the picture is made anew.
            record.write_text(made_from, encoding="utf-8")
    except DataError as error:
        # One of other sources must not be taken for it.
        record.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return Derived(path, str(error))
    return Derived(path)


def first_fault(*made: Derived) -> str | None:
    """Return why the first of them that could not be made could not be; None if all are there."""
    return next((one.fault for one in made if one.fault is not None), None)


def _made_from(sources: Sequence[Path], also_from: object) -> str:
    """Return what a PNG's record says if it is made now. Raises: DataError if a source cannot be read."""
    facts = []
    for source in sources:
        try:
            status = source.stat()
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}") from error
        facts.append([str(source.absolute()), status.st_size, status.st_mtime_ns])
    digest = hashlib.sha256(json.dumps(also_from).encode()).hexdigest()
    return json.dumps({"version": VERSION, "sources": facts, "also_from_sha256": digest})


def _is_made_from(path: Path, record: Path, made_from: str) -> bool:
    """Tell whether there is a whole PNG at `path` whose record is `made_from`."""
    from PIL import Image

    try:
        if record.read_text(encoding="utf-8") != made_from:
            return False
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
    except Exception:  # OSError, SyntaxError, UnicodeDecodeError ...: whatever it is, it is not what was made
        return False
    return True
