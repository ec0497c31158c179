"""Every image of every database, read once: what cannot be used is named, the rest is hashed and looked at."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.databases import AnyDatabase, Row
from data.databases.base import DATABASE_NAME, FolderDatabase
from data.errors import DataError
from data.images import BINARY, decode, mask_values
from data.manifest import ManifestRow
from data.processes import num_cores
from data.quality.look import Look, look_at

# So many rows are looked at, or were and wait for one before them.
ROWS_AHEAD = 64
_Found = tuple[ManifestRow, Look] | DataError


class MaskMismatchError(DataError):
    """A mask does not belong to its image: another size, or values that mean no class."""


@dataclass
class Inspection:
    """rows: by id, those whose files are right. looks: at them. undecodable, mismatched: id -> why it is left out."""

    rows: dict[str, ManifestRow] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    undecodable: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)

    @property
    def num_seen(self) -> int:
        """Images that the databases have."""
        return len(self.rows) + len(self.undecodable) + len(self.mismatched)


def inspect(
    databases: Mapping[str, AnyDatabase], workspace: Path, progress: Callable[[int], None] | None = None
) -> Inspection:
    """Return what `databases` have, in their order; rows are without splits of our own.

    workspace: a folder for the files that databases make. progress: called with the number of images read.
    Raises: DataError if a database is not what it should be, or two images have one id.
    """
    found = Inspection()
    # Decoding and NumPy let go of the interpreter.
    with _pool() as pool, closing(_all_rows(databases, workspace)) as rows:
        for number, (row, result) in enumerate(_in_order(pool, rows), start=1):
            if isinstance(result, MaskMismatchError):
                found.mismatched[row.id] = str(result)
            elif isinstance(result, DataError):
                found.undecodable[row.id] = str(result)
            else:
                found.rows[row.id], found.looks[row.id] = result
            if progress is not None:
                progress(number)
    return found


def _in_order(pool: ThreadPoolExecutor, rows: Iterable["_Named"]) -> Iterator[tuple["_Named", _Found]]:
    """Yield what is found of each row, in order, while later ones are looked at.

    `Executor.map` takes all rows before it gives the first: for a database that makes its images, minutes of silence.
    """
    waiting: deque[Future[tuple[_Named, _Found]]] = deque()
    for row in rows:
        waiting.append(pool.submit(_result, row))
        if len(waiting) > ROWS_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that an error does not make wait for what it has not begun."""
    with ThreadPoolExecutor(num_cores()) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Named:
    """A database's row, and its id over all databases. patients: the name under which its patient ids are known."""

    id: str
    database: str
    patients: str
    row: Row


def _all_rows(databases: Mapping[str, AnyDatabase], workspace: Path) -> Generator[_Named]:
    images: dict[str, Path] = {}
    for database in databases.values():
        if isinstance(database, FolderDatabase):  # all of them, before hours go by with the first
            database.check_layout()
    for name, database in databases.items():
        if not DATABASE_NAME.fullmatch(name):
            raise DataError(f"a database is named {name!r}, needed letters, digits, - and _: it names a folder")
        for row in database.rows(workspace / name):
            id_ = f"{name}/{row.id}"
            if id_ in images:
                raise DataError(f"{id_} comes twice: {images[id_]} and {row.image}; needed one id per image")
            images[id_] = row.image
            yield _Named(id_, name, database.patients or name, row)


def _result(named: _Named) -> tuple[_Named, _Found]:
    try:
        return named, _inspect_row(named)
    except DataError as error:
        return named, error


def _inspect_row(named: _Named) -> tuple[ManifestRow, Look]:
    """Return a row with hashes and size, and a look at it. Raises: DataError if one of its files is not right."""
    row = named.row
    if row.fault:
        raise DataError(row.fault)
    image, sha256 = decode(row.image)
    values, masks_sha256 = [], []
    for path in row.masks:
        mask, mask_sha256 = decode(path)
        values.append(_checked_values(path, mask, image, row.mask_classes))
        masks_sha256.append(mask_sha256)
    given = {column.name: getattr(row, column.name) for column in fields(Row)} | {"id": named.id}
    look = look_at(image, [mask != 0 for mask in values])
    found = {
        "sha256": sha256,
        "likeness": look.likeness,
        "masks_sha256": tuple(masks_sha256),
        "width": image.width,
        "height": image.height,
        "image": row.image.absolute(),
        "masks": tuple(path.absolute() for path in row.masks),
        "patient": f"{named.patients}/{row.patient}" if row.patient is not None else None,
    }
    return ManifestRow(**{**given, **found, "database": named.database, "cluster": named.id}), look


def _checked_values(path: Path, mask: Image.Image, image: Image.Image, classes: Mapping[int, str]) -> NDArray[np.uint8]:
    if mask.size != image.size:
        sizes = f"{mask.width}x{mask.height}, its image {image.width}x{image.height}"
        raise MaskMismatchError(f"{path} is {sizes} pixels")
    values = mask_values(mask, classes)
    if set(classes) == {BINARY} and not values.any() and (levels := np.unique(np.asarray(mask.convert("L")))).any():
        raise MaskMismatchError(
            f"{path} has values up to {levels[-1]} only, needed 255 where the {classes[BINARY]} is (128 is the limit): "
            "set mask_classes to what its values mean"
        )
    if unknown := sorted(set(np.unique(values).tolist()) - {0} - classes.keys()):
        known = ", ".join(f"{value} {name}" for value, name in classes.items())
        raise MaskMismatchError(f"{path} has the value {unknown[0]}, known are {known}")
    return values
