"""Where the tensors of one network are read from, a piece at a time.

Files are read, not mapped: mapped pages count as the process's memory, 9.8 GB for three UNets of Stable Diffusion 1.5.
Format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import finalize

from models.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The names that the format has for dtypes that are merged.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Why tensors are not the same, where nothing can be done about it.
UNLIKE = "they have different architectures"
# Of so many tensors a message gives the name.
MAX_NAMED = 3


@dataclass(frozen=True)
class Stored:
    """What is known of a tensor before it is read. dtype: as the format calls it, such as F16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Source(Protocol):
    """The tensors of one network of one model. label: how the user named the model."""

    label: str

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The tensors by their diffusers names."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a tensor, 1-D float32 on the CPU, the caller's own."""

    def sha256(self) -> str:
        """Return a hash of what is read from."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies. at: of the first byte, from the beginning of the file."""

    path: Path
    at: int
    num_bytes: int
    stored: Stored


class FileSource:
    """Tensors in safetensors files."""

    def __init__(
        self,
        label: str,
        paths: Sequence[Path],
        names: Mapping[str, str] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Read the headers. names: diffusers names by the stored ones, of those to read. None: all as they are stored.

        shapes: of as many elements, by diffusers name, where others are stored. Raises: ModelError if a file is not
        whole.
        """
        self.label = label
        self._paths = tuple(paths)
        self._places: dict[str, Place] = {}
        self._descriptors: dict[Path, int] = {}
        for path in paths:
            for key, place in stored_places(path).items():
                if names is None or key in names:
                    name = key if names is None else names[key]
                    stored = place.stored if shapes is None else replace(place.stored, shape=shapes[name])
                    self._places[name] = replace(place, stored=stored)

    @cached_property
    def tensors(self) -> Mapping[str, Stored]:
        """The tensors by their diffusers names."""
        return {name: place.stored for name, place in self._places.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a tensor, 1-D float32 on the CPU."""
        import torch

        place = self._places[name]
        piece = torch.empty(stop - start, dtype=dtype_of(place.stored.dtype))
        left, at = memoryview(piece.view(torch.uint8).numpy()), place.at + start * piece.itemsize  # type: ignore[arg-type]
        while left:
            size = os.preadv(self._descriptor(place.path), [left], at)
            if size == 0:
                raise OSError(f"{place.path} ends within {name}")
            left, at = left[size:], at + size
        return piece.float()

    def _descriptor(self, path: Path) -> int:
        # It stays open: on a network's file system to open a file for every piece costs more than to read it.
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
            finalize(self, os.close, self._descriptors[path])
        return self._descriptors[path]

    def sha256(self) -> str:
        """Return the sha256 of the file or, of several, of one after another."""
        digest = hashlib.sha256()
        for path in self._paths:
            with path.open("rb", buffering=0) as file:
                buffer = memoryview(bytearray(2**22))
                while size := file.readinto(buffer):
                    digest.update(buffer[:size])
        return digest.hexdigest()


def stored_places(path: Path) -> dict[str, Place]:
    """Return where the tensors of a safetensors file lie. Raises: ModelError if it is not whole."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > size:
            raise ModelError(f"{path} is no safetensors file, or is cut short: copy it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError:
            raise ModelError(f"{path} has no header of a safetensors file: copy it again") from None
    header.pop("__metadata__", None)
    if header and 8 + length + max(entry["data_offsets"][1] for entry in header.values()) != size:
        raise ModelError(f"{path} has not the size that its header gives: copy it again")
    places = {}
    for key, entry in header.items():
        start, end = entry["data_offsets"]
        places[key] = Place(path, 8 + length + start, end - start, Stored(entry["dtype"], tuple(entry["shape"])))
    return places


def dtype_of(name: str) -> torch.dtype:
    """Return torch's dtype of what the format calls `name`, one of DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype


def refuse_strangers(sources: Sequence[Source], base: Source | None = None, *, any_dtype: bool = False) -> None:
    """Raise ModelError, with the names, unless all sources have the first one's tensors, their shapes and dtypes.

    base: its tensors and shapes must be the same too; which one of DTYPES it has decides nothing. any_dtype: that may
    differ between sources.
    """
    for source in [*sources, *([base] if base else [])]:
        of_source = source.tensors
        if odd := [name for name, stored in of_source.items() if stored.dtype not in DTYPES]:
            raise ModelError(
                f"{source.label} has {_listed(odd)} of dtype {of_source[odd[0]].dtype}, which is not merged"
            )
    first = sources[0]
    of_first = first.tensors
    for source in [*sources[1:], *([base] if base else [])]:
        of_source = source.tensors
        for lacking, having in ((source, first), (first, source)):
            if absent := sorted(having.tensors.keys() - lacking.tensors.keys()):
                raise ModelError(f"{lacking.label} has no {_listed(absent)}, which {having.label} has: {UNLIKE}")
        _refuse(first, source, "shape", [n for n, s in of_source.items() if s.shape != of_first[n].shape])
        if not any_dtype and source is not base:
            _refuse(first, source, "dtype", [n for n, s in of_source.items() if s.dtype != of_first[n].dtype])


def _refuse(first: Source, source: Source, what: str, names: list[str]) -> None:
    if names:
        one, other = (getattr(of.tensors[names[0]], what) for of in (first, source))
        mend = UNLIKE if what == "shape" else "say which one is to be written with --dtype"
        one, other = (list(value) if what == "shape" else value for value in (one, other))
        raise ModelError(
            f"{source.label} and {first.label} differ in the {what} of {_listed(sorted(names))} ({other} and {one} of"
            f" {names[0]}): {mend}"
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def sha256_of_all(sources: Sequence[Source]) -> list[str]:
    """Return the hash of each source; several are read at a time, since hashing is slower than a disk."""
    from concurrent.futures import ThreadPoolExecutor

    work: Callable[[Source], str] = lambda source: source.sha256()  # noqa: E731
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(work, sources))
