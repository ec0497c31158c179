"""Samples whose latents are NaN, in real shards."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.shard_index import tar_path
from data.shards import ShardSet

NPY_HEADER_BYTES = 128


@contextmanager
def nan_latents(shards: Path, database: str, ids: Collection[str]) -> Iterator[None]:
    """Overwrite what a folder of shards holds of the training samples `ids`, and put it back."""
    opened = ShardSet.open(shards)
    entries = [entry for entry in opened.entries(database, "train") if entry.id in ids]
    assert len(entries) == len(ids)
    before = {entry.shard: tar_path(shards, entry.shard).read_bytes() for entry in entries}
    for entry in entries:
        with tar_path(shards, entry.shard).open("r+b") as tar:
            tar.seek(entry.offsets[-1] + NPY_HEADER_BYTES)
            tar.write(b"\xff" * (entry.bytes[-1] - NPY_HEADER_BYTES))  # a NaN in every format of floats
    try:
        yield
    finally:
        for shard, content in before.items():
            tar_path(shards, shard).write_bytes(content)
