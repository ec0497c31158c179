"""A copy of a folder of shards on a node's own disk, for a shared file system that is slow to read here and there."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.durable import replacing
from data.embeddings import ARRAY_FILE, PROMPTS_FILE, embeddings_facts
from data.errors import DataError
from data.hashed_table import ENCODE_AGAIN
from data.shard_index import CONTENTS_FILE, Contents, index_path, read_index, tar_path

CHUNK_BYTES = 1 << 20


class _File(NamedTuple):
    """A file to copy, by its path in the folder. sha256: None where the file itself carries it, or is read first."""

    name: str
    bytes: int
    sha256: str | None


def copied_to_node(shards: Path, parent: Path) -> Path:
    """Return a copy of the shards in a folder, made under `parent` unless it is there already.

    One process of a node copies, the others wait for it. What an interrupted one has copied is kept. Nothing else
    under `parent` is touched; runs that train on the same shards share a copy.

    Raises: DataError, naming the file, if a byte of it is not what was written, or if the disk is too small.
    """
    contents = (shards / CONTENTS_FILE).read_bytes()
    out = parent / f"sonoshard-{hashlib.sha256(contents).hexdigest()[:16]}"
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".copy.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (out / CONTENTS_FILE).exists():
            return out
        missing = [file for file in _files(shards) if not _is_copied(out / file.name, file.bytes)]
        needed, free = sum(file.bytes for file in missing), shutil.disk_usage(out).free
        if needed > free:
            raise DataError(
                f"{parent} has {free / 1e9:.1f} GB free, the shards in {shards} need {needed / 1e9:.1f} GB: give"
                " loader.copy_to a larger disk, or null to read them where they are"
            )
        for file in missing:
            _copy(shards / file.name, out / file.name, file.sha256)
        with replacing(out / CONTENTS_FILE) as temporary:
            temporary.write_bytes(contents)
    return out


def _files(shards: Path) -> Iterator[_File]:
    """Yield what is copied besides fingerprint.json, which comes last. Indexes and prompts carry their own hash."""
    facts = embeddings_facts(shards)
    yield _File(ARRAY_FILE, facts.array_bytes, facts.array_sha256)
    yield _File(PROMPTS_FILE, (shards / PROMPTS_FILE).stat().st_size, None)
    for name in Contents.read(shards).shards:
        tar, index = tar_path(Path(), name), index_path(Path(), name)
        about, _ = read_index(shards / index)
        yield _File(str(tar), about.tar_bytes, about.tar_sha256)
        yield _File(str(index), (shards / index).stat().st_size, None)


def _is_copied(path: Path, num_bytes: int) -> bool:
    """Return whether a file is there: under its own name it has only ever been whole."""
    return path.is_file() and path.stat().st_size == num_bytes


def _copy(source: Path, target: Path, sha256: str | None) -> None:
    """Copy a file, or leave nothing of it. Raises: DataError if it has not the hash that it should have."""
    digest = hashlib.sha256()
    with replacing(target) as temporary:
        with source.open("rb") as original, temporary.open("wb") as copy:
            while chunk := original.read(CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise DataError(f"{source} is damaged: remove it and {ENCODE_AGAIN}")
