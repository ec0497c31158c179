"""The manifest a shard at a time: a database of any size is encoded in the memory of one shard's rows."""

import json
import tempfile
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

BATCH_ROWS = 1024


class ManifestSlices:
    """The rows of a manifest, grouped into shards of one database and split, in the manifest's order.

    palette: mask class names by number. sizes: rows of each shard, by its name ("database/split-number").
    """

    def __init__(self, table: "pa.Table", palette: Sequence[str], samples_per_shard: int) -> None:
        self.palette = tuple(palette)
        self._table = table
        self._places = _places(table, samples_per_shard)
        self.sizes: Mapping[str, int] = {name: len(places) for name, places in self._places.items()}

    @classmethod
    @contextmanager
    def open(cls, path: Path, samples_per_shard: int) -> Iterator[Self]:
        """Yield the manifest at `path`. Raises: DataError if there is none, or none of this version.

        Its columns are unpacked to a temporary file that is mapped into memory: a Parquet file cannot be read here and
        there, and 100,000 rows need 60 MB as Arrow's columns, 600 MB as Python's objects.
        """
        import pyarrow as pa

        if not path.is_file():
            raise DataError(f"there is no manifest {path}: run `sonoshard prepare` first")
        with tempfile.TemporaryDirectory(prefix="sonoshard-") as folder:
            unpacked = Path(folder) / "manifest.arrow"
            palette = _unpack(path, unpacked)
            with pa.memory_map(str(unpacked)) as mapped:
                yield cls(pa.ipc.open_file(mapped).read_all(), palette, samples_per_shard)

    def rows(self, shard: str) -> list[ManifestRow]:
        """Return the rows of a shard."""
        return [row_from_cells(cells) for cells in self._table.take(self._places[shard]).to_pylist()]

    def prompts(self) -> "pa.Array":
        """Return the distinct prompts of all rows and the empty one, sorted."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = [
            pa.array([EMPTY_PROMPT]),
            *(pc.unique(chunk.flatten()) for chunk in self._table.column("prompts").chunks),
        ]
        distinct = pc.unique(pa.chunked_array(found))
        return distinct.take(pc.sort_indices(distinct))


def _unpack(path: Path, out: Path) -> list[str]:
    """Write a manifest's rows to `out`, some at a time, in Arrow's format for files; return its palette."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Page by page: otherwise all of the compressed columns are read first.
        with pq.ParquetFile(path, buffer_size=1 << 16) as stored:
            about = json.loads((stored.schema_arrow.metadata or {})[METADATA_KEY])
            if about["version"] == VERSION:
                schema = stored.schema_arrow.remove_metadata()
                with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                    for batch in stored.iter_batches(BATCH_ROWS):
                        writer.write(batch.replace_schema_metadata(None))
    except (pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"{path} is not a manifest of SonoShard: remove it and run `sonoshard prepare`") from error
    if about["version"] != VERSION:
        raise DataError(
            f"{path} has version {about['version']}, needed {VERSION}: remove it and run `sonoshard prepare`"
        )
    palette: list[str] = about["palette"]
    return palette


def _places(table: "pa.Table", samples_per_shard: int) -> dict[str, NDArray[np.int64]]:
    """Return the numbers of each shard's rows, by its name: new rows only touch the last shards."""
    import pyarrow.compute as pc

    if len(table) == 0:
        return {}
    groups = pc.binary_join_element_wise(table.column("database"), table.column("split"), "/").combine_chunks()
    encoded = groups.dictionary_encode()
    names, numbers = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    places = {}
    for name, number in sorted(zip(names, range(len(names)), strict=True)):
        of_group = np.flatnonzero(numbers == number)
        for shard, start in enumerate(range(0, len(of_group), samples_per_shard)):
            places[f"{name}-{shard:06d}"] = of_group[start : start + samples_per_shard]
    return places
