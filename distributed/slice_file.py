"""Safetensors files written and read in parts: a rank's state is never in memory a second time.

The safetensors library turns all tensors into bytes before it writes the first, and maps a whole file to read from it;
its format is a length, a JSON header and the tensors' bytes one after another.
Format: https://huggingface.co/docs/safetensors, "Format".
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What is copied at a time.
PART_BYTES = 2**24

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def write_slices(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write 1-D `tensors` (float32, bfloat16 or uint8, on any device) to a new file and return its sha256.

    The file is on the disk when this returns. Raises: OSError.
    """
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for part in _contents(tensors):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


class SliceFile:
    """One file of slices, read in parts."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises: OSError, ValueError."""
        self._path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._entries: dict[str, Any] = json.loads(file.read(length))
        self._first = 8 + length

    def numel(self, key: str) -> int:
        """Return the number of elements of a tensor."""
        return int(self._entries[key]["shape"][0])

    def read_into(self, target: Tensor, key: str, start: int) -> None:
        """Copy the stored elements from `start` on into `target` (1-D, any device); `target` says how many."""
        entry = self._entries[key]
        dtype = _DTYPES[entry["dtype"]]
        assert start + target.numel() <= entry["shape"][0], f"{key} of {self._path} is too short"
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._first + entry["data_offsets"][0] + start * dtype.itemsize)
            for part in target.split(PART_BYTES // dtype.itemsize):
                buffer = torch.empty(part.numel(), dtype=dtype)
                _fill(_bytes(buffer), file, key)
                part.copy_(buffer)


def _fill(memory: memoryview, file: FileIO, key: str) -> None:
    """Read until `memory` is full: one read of an unbuffered file may bring less, on a file system of a network."""
    while memory:
        num_bytes = file.readinto(memory)
        if not num_bytes:
            raise OSError(f"{file.name} ends within {key}")
        memory = memory[num_bytes:]


def _contents(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file, part by part."""
    yield _header(tensors)
    for tensor in tensors.values():
        for part in tensor.detach().split(PART_BYTES // tensor.element_size()):
            yield _bytes(part.cpu().contiguous())


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries, offset = {}, 0
    for key, tensor in tensors.items():
        assert tensor.ndim == 1, f"{key} is no slice"
        stop = offset + tensor.nbytes
        entries[key] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": [tensor.numel()], "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, as they lie in memory."""
    return memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
