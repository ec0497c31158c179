"""The manifest a shard at a time: a database of any size is encoded in the memory of one shard's rows."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.manifest import METADATA_KEY, VERSION, ManifestRow, row_from_cells
from data.shard_index import EMPTY_PROMPT

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class ManifestSlices:
    """The rows of a manifest, grouped into shards of one database and split, in the manifest's order.

    palette: mask class names by number. sizes: rows of each shard, by its name ("database/split-number").
    In memory are one row group of the file, eight bytes a row that tell its shard, and the file's own list of groups.
    """

    def __init__(self, path: Path, stored: "pq.ParquetFile", palette: Sequence[str], samples_per_shard: int) -> None:
        self.palette = tuple(palette)
        self._path = path
        self._stored = stored
        self._last_read: tuple[int, pa.Table] | None = None
        about = stored.metadata
        lengths = [about.row_group(number).num_rows for number in range(stored.num_row_groups)]
        self._first_rows = np.cumsum([0, *lengths])
        self._places = self._find_places(samples_per_shard)
        self.sizes: Mapping[str, int] = {name: len(places) for name, places in self._places.items()}

    @classmethod
    @contextmanager
    def open(cls, path: Path, samples_per_shard: int) -> Iterator[Self]:
        """Yield the manifest at `path`. Raises: DataError if there is none, or none of this version."""
        import pyarrow.parquet as pq

        if not path.is_file():
            raise DataError(f"there is no manifest {path}: run `sonoshard prepare` first")
        with path.open("rb") as file:
            with _refusing(path):
                # Page by page: otherwise all of the compressed columns of a row group are read first.
                stored = pq.ParquetFile(file, buffer_size=1 << 16)
                about = json.loads((stored.schema_arrow.metadata or {})[METADATA_KEY])
                version, palette = about["version"], about.get("palette", [])
            if version != VERSION:
                raise DataError(
                    f"{path} has version {version}, needed {VERSION}: remove it and run `sonoshard prepare`"
                )
            yield cls(path, stored, palette, samples_per_shard)

    def rows(self, shard: str) -> list[ManifestRow]:
        """Return the rows of a shard. Raises: DataError if the file is damaged."""
        places = self._places[shard]
        groups = np.searchsorted(self._first_rows, places, side="right") - 1
        rows = []
        for group in np.unique(groups).tolist():
            of_group = self._row_group(group).take(places[groups == group] - self._first_rows[group])
            rows += [row_from_cells(cells) for cells in of_group.to_pylist()]
        return rows

    def prompts(self) -> "pa.Array":
        """Return the distinct prompts of all rows and the empty one, sorted."""
        import pyarrow as pa
        import pyarrow.compute as pc

        distinct = pa.array([EMPTY_PROMPT])
        for group in range(self._stored.num_row_groups):
            found = self._read(group, ["prompts"]).column("prompts").combine_chunks()
            distinct = pc.unique(pa.chunked_array([distinct, found.flatten()]))
        return distinct.take(pc.sort_indices(distinct))

    def _row_group(self, group: int) -> "pa.Table":
        """Return a row group; the last one is kept, since shards follow each other in it."""
        if self._last_read is None or self._last_read[0] != group:
            self._last_read = None
            self._last_read = group, self._read(group)
        return self._last_read[1]

    def _read(self, group: int, columns: Sequence[str] | None = None) -> "pa.Table":
        with _refusing(self._path):
            return self._stored.read_row_group(group, columns, use_threads=False)

    def _find_places(self, samples_per_shard: int) -> dict[str, NDArray[np.int64]]:
        """Return the numbers of each shard's rows, by its name: new rows only touch the last shards."""
        import pyarrow.compute as pc

        places: dict[str, list[NDArray[np.int64]]] = {}
        for group, first in enumerate(self._first_rows[:-1].tolist()):
            table = self._read(group, ["database", "split"])
            names = pc.binary_join_element_wise(table.column("database"), table.column("split"), "/")
            encoded = names.combine_chunks().dictionary_encode()
            numbers = encoded.indices.to_numpy()
            for number, name in enumerate(encoded.dictionary.to_pylist()):
                places.setdefault(name, []).append(first + np.flatnonzero(numbers == number))
        shards = {}
        for name in sorted(places):
            of_split = np.concatenate(places[name])
            for shard, start in enumerate(range(0, len(of_split), samples_per_shard)):
                shards[f"{name}-{shard:06d}"] = of_split[start : start + samples_per_shard]
        return shards


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raise DataError where Arrow cannot read a file, or finds in it what no manifest has."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the file system: what the file holds may be whole
            raise DataError(f"{path} cannot be read: {os.strerror(error.errno)}: run it again") from error
        raise DataError(f"{path} is not a manifest of SonoShard: remove it and run `sonoshard prepare`") from error
