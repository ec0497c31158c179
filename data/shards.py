"""Latent shards for training: any sample in one random access, without parsing a tar."""

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, overload
from weakref import finalize

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.embeddings import PROMPTS_FILE, read_embeddings
from data.errors import DataError
from data.hashed_table import ENCODE_AGAIN
from data.mapped import let_go
from data.shard_index import (
    EMPTY_PROMPT,
    MEMBERS,
    Contents,
    ShardFacts,
    index_path,
    read_index,
    read_samples,
    tar_path,
)
from data.splits import keyed_hash

if TYPE_CHECKING:
    import pyarrow as pa

# Open tars at a time, since a process often may have 1024 files. They are read, not mapped: a map's pages count as the
# process's memory, 700 MB for 4,000 samples of 512 px. To let go of them after use costs 37 us a sample, to read 9.
MAX_TARS = 256
Stamp = tuple[int, int, int]  # inode, time of its last change in ns, bytes
# The embeddings stay mapped, which saves 17 us a sample. Of more than this, 500 prompts of Stable Diffusion 1.5, the
# pages are let go of whenever so many bytes were read.
MAX_TEXT_BYTES = 120_000_000
# Columns of the index that an entry has as they are, and the parts of the names of the others.
TEXTS = ("id", "label", "patient", "image_sha256", "sha256")
KINDS = tuple(member.split(".")[0] for member in MEMBERS)
WHAT = ("offset", "bytes")


class Entry(NamedTuple):
    """Where a sample lies.

    prompts: numbers of its prompts in ShardSet.prompts.
    has_hint: whether it has a mask. image_sha256: of the image file. sha256: of the sample's bytes in the tar.
    """

    id: str
    label: str
    patient: str | None
    prompts: tuple[int, ...]
    has_hint: bool
    shard: str
    offsets: tuple[int, ...]
    bytes: tuple[int, ...]
    image_sha256: str
    sha256: str


class Entries(Sequence[Entry]):
    """The samples of a split in stable order. They stay in columns: 100,000 of them need some 30 MB."""

    def __init__(self, table: "pa.Table") -> None:
        columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        self._length = len(table)
        self._texts = {name: columns[name] for name in TEXTS}
        self._clusters = columns["cluster"]
        # In NumPy's arrays a number costs a tenth of what it costs in Arrow's, which makes an object of each first.
        places = [np.column_stack([columns[f"{kind}_{what}"].to_numpy() for kind in KINDS]) for what in WHAT]
        self._offsets, self._bytes = places
        self._has_hint = columns["has_hint"].to_numpy(zero_copy_only=False)
        self._likeness = columns["likeness"]
        self._first_prompt = columns["prompts"].offsets.to_numpy()
        self._prompts = columns["prompts"].values.to_numpy()
        self._shards = columns["shard"].dictionary.to_pylist()
        self._shard = columns["shard"].indices.to_numpy()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"entry {index} of {self._length}")
        index = int(index) % self._length
        texts = {name: column[index].as_py() for name, column in self._texts.items()}
        return Entry(
            **texts,
            prompts=tuple(self._prompts[self._first_prompt[index] : self._first_prompt[index + 1]].tolist()),
            has_hint=bool(self._has_hint[index]),
            shard=self._shards[self._shard[index]],
            offsets=tuple(self._offsets[index].tolist()),
            bytes=tuple(self._bytes[index].tolist()),
        )

    def __iter__(self) -> Iterator[Entry]:
        return (self[index] for index in range(self._length))

    def prompt_numbers(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return where each sample's prompts begin, [N + 1], in the numbers of all prompts, one after another."""
        return self._first_prompt, self._prompts[self._first_prompt[0] : self._first_prompt[-1]]

    def has_hints(self) -> NDArray[np.bool_]:
        """Return of every sample whether it has a mask."""
        return self._has_hint

    def num_hints(self) -> int:
        """Return how many samples have a mask."""
        return int(self._has_hint.sum())

    def clusters(self) -> NDArray[np.object_]:
        """Return who shares the split of every sample: a patient, or copies of a file."""
        return self._clusters.to_numpy(zero_copy_only=False)

    def likenesses(self) -> list[bytes]:
        """Return the perceptual hashes of every sample's image; empty where they are not known."""
        return self._likeness.to_pylist()

    def image_hashes(self) -> NDArray[np.object_]:
        """Return the SHA-256 of every sample's image file."""
        return self._texts["image_sha256"].to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Record:
    """A sample as it is trained on. moments: mean, then log-variance, [2 C, h, w] float32. read_hint: gives a PNG."""

    id: str
    moments: NDArray[np.float32]
    prompt_index: int
    read_hint: Callable[[], bytes]
    mirrored: bool

    @cached_property
    def hint(self) -> NDArray[np.uint8]:
        """Class numbers, [H, W]; read when asked for, since Stable Diffusion's own training does not."""
        with Image.open(io.BytesIO(self.read_hint()), formats=["PNG"]) as picture:
            numbers = np.asarray(picture)
        return np.ascontiguousarray(numbers[:, ::-1]) if self.mirrored else numbers


class ShardSet:
    """A folder of latent shards, opened for reading. It may be pickled to other processes, which open it anew.

    text: embeddings of `prompts`, [P, L, D], mapped into memory. empty_prompt_index: the number of the empty prompt,
    for caption dropout and guidance.
    """

    def __init__(
        self,
        path: Path,
        contents: Contents,
        facts: Mapping[str, ShardFacts],
        stamps: Mapping[str, Stamp | None],
        check_hashes: bool = False,
    ) -> None:
        self.path = path
        self._stamps = dict(stamps)
        self._check_hashes = check_hashes
        self.palette = contents.palette
        self.fingerprint = contents.fingerprint
        self._facts = dict(facts)
        self._entries: dict[tuple[str, str], Entries] = {}
        self._tar = lru_cache(maxsize=MAX_TARS)(self._open_tar)
        self.prompts, self.text = read_embeddings(path)
        self._text_bytes_read = 0
        self.empty_prompt_index = self.prompts.index(EMPTY_PROMPT)

    @classmethod
    def open(
        cls, path: Path, expected_fingerprint: Mapping[str, str] | None = None, *, check_hashes: bool = False
    ) -> Self:
        """Return the shards in a folder, after a look at every file's size.

        expected_fingerprint: parts that must be as here, such as the encoder's own; None: whatever made them is fine.
        check_hashes: compare each sample with its hash whenever it is read.
        Raises: DataError that names the part or the file which is wrong.
        """
        contents = Contents.read(path)
        mend = "encode into another folder with this model, or train with that one"
        contents.refuse_other(expected_fingerprint or {}, path, mend)
        stamps = {name: _stamp(index_path(path, name)) for name in contents.shards}
        facts = _checked_facts(path, contents)
        return cls(path, contents, facts, stamps, check_hashes)

    @property
    def databases(self) -> dict[str, tuple[str, ...]]:
        """The splits that there are samples of, by database."""
        groups = sorted({_group(name) for name in self._facts})
        return {name: tuple(split for database, split in groups if database == name) for name, _ in groups}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent, [C, h, w]."""
        _, moments, height, width = next(iter(self._facts.values())).moments_shape
        return moments // 2, height, width

    def entries(self, database: str, split: str) -> Entries:
        """Return the samples of a split, in an order that stays. Raises: DataError if there are none."""
        if (database, split) not in self._entries:
            if database not in self.databases:
                raise DataError(f"{self.path} has no database {database}; it has {', '.join(self.databases)}")
            if split not in self.databases[database]:
                there_are = ", ".join(self.databases[database])
                raise DataError(f"{self.path} has no {split} samples of {database}; it has {there_are}")
            self._entries[database, split] = Entries(self._table(database, split))
        return self._entries[database, split]

    def part(self, database: str, fraction: float, seed: int) -> NDArray[np.int64]:
        """Return the sorted numbers of a part of the training samples that divides no patient.

        Whole clusters are taken in an order that `seed` keys until there are `fraction` of all images, in (0, 1]; so
        a smaller part lies within a larger one, 1 is all, and none is empty.
        """
        clusters = self.entries(database, "train").clusters()
        names, of_image, counts = np.unique(clusters, return_inverse=True, return_counts=True)
        order = np.array(sorted(range(len(names)), key=lambda number: keyed_hash(str(names[number]), seed)))
        # The cluster with which there are enough is the last one; a product such as 0.1 * 3 may be a little too large.
        num_taken = 1 + int(np.searchsorted(np.cumsum(counts[order]), fraction * len(clusters) - 1e-6))
        is_taken = np.zeros(len(names), dtype=bool)
        is_taken[order[:num_taken]] = True
        return np.flatnonzero(is_taken[of_image])

    def read(self, entry: Entry, mirrored: bool, *, choice: int = 0) -> Record:
        """Return a sample, or its mirror image. choice: which of its prompts, modulo their number.

        Raises: DataError, where the hashes are checked, if a byte of it is not what was written.
        """
        if self._check_hashes:
            self.check(entry)
        facts = self._facts[entry.shard]
        tar = self._tar(entry.shard)
        hint, _, moments = entry.offsets
        hint_bytes, _, moments_bytes = entry.bytes
        dtype = np.dtype("<u2" if facts.moments_dtype == "bfloat16" else facts.moments_dtype)
        shape = facts.moments_shape[1:]
        size = math.prod(shape)
        # The two halves stand at the end of the .npy, behind a header of some length.
        start = moments + moments_bytes - (1 if mirrored else 2) * size * dtype.itemsize
        stored = np.empty(shape, dtype=dtype)
        tar.fill(stored, start)
        return Record(
            id=entry.id,
            moments=_widened(stored, facts.moments_dtype),
            prompt_index=entry.prompts[choice % len(entry.prompts)],
            read_hint=partial(tar.read, hint, hint_bytes),
            mirrored=mirrored,
        )

    def embeddings(self, prompts: Sequence[int]) -> NDArray[np.float32]:
        """Return copies of the embeddings of prompts, by their numbers, [p, L, D]."""
        found = self.text.take(prompts, axis=0)
        self._text_bytes_read += found.nbytes
        if self._text_bytes_read > MAX_TEXT_BYTES:
            self._text_bytes_read = 0
            if self.text.nbytes > MAX_TEXT_BYTES:
                let_go(self.text)
        return found

    def check(self, entry: Entry) -> None:
        """Raise DataError if a byte of a sample is not what was written."""
        tar = self._tar(entry.shard)
        digest = hashlib.sha256()
        for offset, length in zip(entry.offsets, entry.bytes, strict=True):
            digest.update(tar.read(offset, length))
        if digest.hexdigest() != entry.sha256:
            raise DataError(
                f"{tar_path(self.path, entry.shard)} is damaged at {entry.id}: remove it and {ENCODE_AGAIN}"
            )

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self).open, check_hashes=self._check_hashes), (self.path,)

    def _table(self, database: str, split: str) -> "pa.Table":
        """Return the index of a split, with the prompts as numbers."""
        import pyarrow as pa
        import pyarrow.compute as pc

        shards = [name for name in self._facts if _group(name) == (database, split)]
        table = read_samples([index_path(self.path, name) for name in shards], shards)
        for name in shards:
            self._refuse_encoded_anew(name)
        texts = table.column("prompts").combine_chunks()
        numbers = pc.index_in(texts.flatten(), value_set=self.prompts.column)
        if numbers.null_count:
            raise DataError(f"{self.path / PROMPTS_FILE} lacks a prompt of {database}: {ENCODE_AGAIN}")
        column = pa.ListArray.from_arrays(texts.offsets, numbers)
        return table.set_column(table.column_names.index("prompts"), "prompts", column)

    def _open_tar(self, shard: str) -> "OpenFile":
        tar = OpenFile(tar_path(self.path, shard))
        # After the tar is open: `encode` takes the index away before it replaces that.
        self._refuse_encoded_anew(shard)
        return tar

    def _refuse_encoded_anew(self, shard: str) -> None:
        """Raise DataError if a shard's index is not the one that was there when the folder was opened."""
        if _stamp(index_path(self.path, shard)) != self._stamps[shard]:
            raise DataError(f"{tar_path(self.path, shard)} was encoded anew since it was first read: start again")


class OpenFile:
    """A file that is read here and there, by any thread; it is closed with its last user."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        finalize(self, os.close, self._descriptor)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Return bytes from `offset` on."""
        return os.pread(self._descriptor, num_bytes, offset)

    def fill(self, array: NDArray[np.generic], offset: int) -> None:
        """Fill an array with the bytes from `offset` on. Raises: DataError if the file ends before."""
        num_bytes = os.preadv(self._descriptor, [array.data], offset)
        if num_bytes != array.nbytes:
            raise DataError(f"{self._path} ends after {offset + num_bytes} bytes: remove it and {ENCODE_AGAIN}")


def _checked_facts(path: Path, contents: Contents) -> dict[str, ShardFacts]:
    """Return every shard's facts. Raises: DataError that names the first which is not whole, and counts the others."""
    facts: dict[str, ShardFacts] = {}
    faults: list[str] = []
    for name in contents.shards:
        try:
            facts[name] = checked_shard(path, name, contents)
        except DataError as fault:
            faults.append(str(fault))
    if len(faults) > 1:
        first = faults[0].rpartition(": ")[0]
        raise DataError(
            f"{len(faults)} of the {len(contents.shards)} shards in {path} are missing or not whole, the first of them:"
            f" {first}: {ENCODE_AGAIN}, all its parts"
        )
    if faults:
        raise DataError(faults[0])
    return facts


def checked_shard(path: Path, name: str, contents: Contents) -> ShardFacts:
    """Return a shard's facts. Raises: DataError if it is missing, cut off, unfinished or of other rows."""
    tar, index = tar_path(path, name), index_path(path, name)
    if not tar.is_file():
        raise DataError(f"{tar} is missing: {ENCODE_AGAIN}")
    if not index.is_file():
        raise DataError(f"{tar} is unfinished, it has no index: {ENCODE_AGAIN}")
    facts, _ = read_index(index)
    if tar.stat().st_size != facts.tar_bytes:
        raise DataError(f"{tar} has {tar.stat().st_size} bytes, needed {facts.tar_bytes}: {ENCODE_AGAIN}")
    if facts.rows_sha256 != contents.shards[name].rows_sha256:
        raise DataError(f"{tar} holds other rows than the manifest that was encoded last: {ENCODE_AGAIN}")
    if facts.fingerprint_sha256 != contents.fingerprint_sha256:
        raise DataError(f"{tar} was made by another encoder than {path} says: {ENCODE_AGAIN}")
    return facts


def _stamp(path: Path) -> Stamp | None:
    """Return what a file that takes the place of this one does not share with it; None where there is none.

    Opened, as NFS looks at the server's file then.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _group(shard: str) -> tuple[str, str]:
    """Return the database and split in a shard's name, such as busi/train-000000."""
    database, _, name = shard.partition("/")
    return database, name.rpartition("-")[0]


def _widened(stored: NDArray[np.generic], dtype: str) -> NDArray[np.float32]:
    """Return a float32 copy of stored moments; bfloat16 is the upper half of a float32's bits."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float16":
        import torch

        # NumPy's own conversion takes 26 us for 32,768 numbers, this one 8.
        return torch.from_numpy(stored).float().numpy()
    return stored.astype(np.float32)
