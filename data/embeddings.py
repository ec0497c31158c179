"""The text embeddings of a folder of shards: one array that is mapped into memory, and the prompts beside it.

text.npy       embeddings, [P, L, D] float32, sorted by their prompts; read page by page, whatever its size
text.parquet   the prompts, and the hash of text.npy; written last: a text.npy without it is unfinished
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from data.durable import replacing
from data.errors import DataError
from data.hashed_table import ENCODE_AGAIN, read_table, write_table
from data.mapped import let_go

if TYPE_CHECKING:
    import pyarrow as pa

# P prompts, L prompt tokens, D text width

ARRAY_FILE = "text.npy"
PROMPTS_FILE = "text.parquet"
VERSION = 1
# What an interrupted call leaves: the array so far, and how far it is.
UNFINISHED_ARRAY = ".text.npy.unfinished"
UNFINISHED_STATE = ".text.json.unfinished"
SAVE_EVERY_BATCHES = 16


class Prompts(Sequence[str]):
    """Sorted distinct prompts. They stay in Arrow's column: 100,000 of 60 letters need 7 MB, as a list 13."""

    def __init__(self, column: "pa.Array") -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.column[index].to_pylist() if isinstance(index, slice) else self.column[int(index)].as_py()

    def __contains__(self, prompt: object) -> bool:
        return self._number(prompt) is not None

    def index(self, prompt: str, start: int = 0, stop: int | None = None) -> int:
        """Return the number of a prompt. Raises: ValueError if there is none."""
        assert (start, stop) == (0, None)
        if (number := self._number(prompt)) is None:
            raise ValueError(f"no embedding of {prompt!r}")
        return number

    def _number(self, prompt: object) -> int | None:
        number: int = self.column.index(prompt).as_py()
        return number if number >= 0 else None


@dataclass(frozen=True)
class EmbeddingsFacts:
    """What a folder's text.parquet says of its text.npy, [P, L, D]. fingerprint_sha256: of the encoder that made it."""

    fingerprint_sha256: str
    array_sha256: str
    array_bytes: int
    shape: tuple[int, int, int]


def write_embeddings(
    folder: Path,
    prompts: "pa.Array",
    embed: Callable[[list[str]], NDArray[np.float32]],
    *,
    batch_size: int,
    fingerprint_sha256: str,
) -> None:
    """Make the folder hold the embeddings of `prompts`, which are sorted and distinct.

    embed: the embeddings of some prompts, [p, L, D]. fingerprint_sha256: of the encoder; embeddings that it made are
    copied over. Memory needed: `SAVE_EVERY_BATCHES` batches, and the prompts. A kill at any time leaves what was there,
    or nothing; the next call goes on from the last so many batches.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    old = _usable(folder, fingerprint_sha256)
    if old is not None and old[0].column.equals(prompts):
        return
    folder.mkdir(parents=True, exist_ok=True)
    places = pc.index_in(prompts, value_set=old[0].column if old else pa.array([], pa.string()))
    key = _key(prompts, fingerprint_sha256)
    array, num_done = _unfinished(folder, key)
    for start in range(num_done, len(prompts), batch_size):
        batch, known = prompts[start : start + batch_size], places[start : start + batch_size]
        is_new = known.is_null().to_numpy(zero_copy_only=False)
        values = old[1][known.fill_null(0).to_numpy()] if old else None
        if is_new.any():
            made = embed(batch.filter(pa.array(is_new)).to_pylist())
            values = np.empty((len(batch), *made.shape[1:]), dtype=np.float32) if values is None else values
            values[is_new] = made
        assert values is not None
        if array is None:
            (folder / UNFINISHED_STATE).unlink(missing_ok=True)
            shape = (len(prompts), *values.shape[1:])
            array = np.lib.format.open_memmap(folder / UNFINISHED_ARRAY, mode="w+", dtype=np.float32, shape=shape)
            with (folder / UNFINISHED_ARRAY).open("r+b") as file:  # a full disk is an error here, later a SIGBUS
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        array[start : start + len(values)] = values
        if (start // batch_size + 1) % SAVE_EVERY_BATCHES == 0:
            array.flush()
            let_go(array)
            if old is not None:
                let_go(old[1])
            with replacing(folder / UNFINISHED_STATE) as temporary:
                state = {"key": key, "num_done": start + len(values), "shape": array.shape}
                temporary.write_text(json.dumps(state), encoding="utf-8")
    assert array is not None, "the empty prompt is always there"
    array.flush()
    _publish(folder, prompts, fingerprint_sha256, array.shape)


def _publish(folder: Path, prompts: "pa.Array", fingerprint_sha256: str, shape: tuple[int, int, int]) -> None:
    """Give a finished array its name, and its prompts and its hash to the folder."""
    import pyarrow as pa

    array = folder / UNFINISHED_ARRAY
    with array.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    facts = EmbeddingsFacts(fingerprint_sha256, digest, array.stat().st_size, shape)
    (folder / UNFINISHED_STATE).unlink(missing_ok=True)
    # First of all, so that the array is never taken for that of the old prompts.
    (folder / PROMPTS_FILE).unlink(missing_ok=True)
    with replacing(folder / ARRAY_FILE) as temporary:
        array.replace(temporary)
    write_table(folder / PROMPTS_FILE, pa.table({"prompt": prompts}), {"version": VERSION, **asdict(facts)})


def _unfinished(folder: Path, key: str) -> tuple["np.memmap[Any, Any] | None", int]:
    """Return the array that an interrupted call with the same arguments left, and how many rows of it are done."""
    path = folder / UNFINISHED_ARRAY
    try:
        state = json.loads((folder / UNFINISHED_STATE).read_text(encoding="utf-8"))
        if state["key"] != key:
            return None, 0
        header_bytes = path.stat().st_size - 4 * math.prod(state["shape"])
        return np.memmap(path, np.float32, "r+", offset=header_bytes, shape=tuple(state["shape"])), state["num_done"]
    except (OSError, ValueError):
        return None, 0


def _key(prompts: "pa.Array", fingerprint_sha256: str) -> str:
    """Return a hash of what the embeddings depend on."""
    digest = hashlib.sha256(fingerprint_sha256.encode())
    for start in range(0, len(prompts), 4096):
        digest.update(json.dumps(prompts[start : start + 4096].to_pylist()).encode())
    return digest.hexdigest()


def read_embeddings(folder: Path) -> tuple[Prompts, NDArray[np.float32]]:
    """Return the prompts and their embeddings, [P, L, D], mapped into memory.

    Raises: DataError if one of the two files is missing, damaged or of another size; the array's bytes are not looked
    at, see `check_embeddings`.
    """
    prompts, facts = _read_prompts(folder)
    path = folder / ARRAY_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing: {ENCODE_AGAIN}")
    if path.stat().st_size != facts.array_bytes:
        raise DataError(f"{path} has {path.stat().st_size} bytes, needed {facts.array_bytes}: {ENCODE_AGAIN}")
    # NumPy's header, which comes first, is left to others: reading a damaged one raises whatever Python's parser does.
    header_bytes = facts.array_bytes - 4 * math.prod(facts.shape)
    mapped = np.memmap(path, np.float32, mode="r", offset=header_bytes, shape=facts.shape)
    # Not np.memmap itself, whose every slice costs a microsecond more.
    return prompts, np.asarray(mapped)


def check_embeddings(folder: Path) -> None:
    """Raise DataError if a byte of the folder's embeddings is not what was written."""
    facts = embeddings_facts(folder)
    path = folder / ARRAY_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing: {ENCODE_AGAIN}")
    with path.open("rb") as array:
        if hashlib.file_digest(array, "sha256").hexdigest() != facts.array_sha256:
            raise DataError(_damaged(path))


def embeddings_facts(folder: Path) -> EmbeddingsFacts:
    """Return what a folder says of its embeddings. Raises: DataError if its prompts are missing or damaged."""
    return _read_prompts(folder)[1]


def _read_prompts(folder: Path) -> tuple[Prompts, EmbeddingsFacts]:
    path = folder / PROMPTS_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing: {ENCODE_AGAIN}")
    about, table = read_table(path)
    if (version := about.pop("version")) != VERSION:
        raise DataError(f"{path} has version {version}, needed {VERSION}: remove it and {ENCODE_AGAIN}")
    return Prompts(table.column("prompt").combine_chunks()), EmbeddingsFacts(**about | {"shape": tuple(about["shape"])})


def _usable(folder: Path, fingerprint_sha256: str) -> tuple[Prompts, NDArray[np.float32]] | None:
    """Return the embeddings that a folder has of this encoder, if it has any that are whole."""
    try:
        found = read_embeddings(folder)
        if embeddings_facts(folder).fingerprint_sha256 == fingerprint_sha256:
            return found
    except DataError:
        pass
    return None


def _damaged(path: Path) -> str:
    return f"{path} is damaged: remove it and {ENCODE_AGAIN}"
