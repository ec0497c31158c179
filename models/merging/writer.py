"""A safetensors file written piece by piece: the library wants all tensors in memory before it writes the first.

Format: https://huggingface.co/docs/safetensors, "Format": a length, a JSON header, and the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from models.durable import flush
from models.merging.source import Stored, dtype_of

if TYPE_CHECKING:
    from torch import Tensor


def write_pieces(
    path: Path, tensors: Mapping[str, Stored], pieces: Iterable[Tensor], metadata: Mapping[str, str]
) -> str:
    """Write a file and return its sha256; it is on the disk when this returns, whole or not at all.

    tensors: what will come, in this order; the format wants larger dtypes first. pieces: their elements one after
    another, 1-D on the CPU; no piece holds elements of two tensors.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, stored in tensors.items():
        size = stored.numel * dtype_of(stored.dtype).itemsize
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    digest = hashlib.sha256()
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            for part in _bytes(len(text).to_bytes(8, "little") + text, tensors, pieces):
                digest.update(part)
                file.write(part)
            assert file.tell() == 8 + len(text) + end, "the pieces are not the tensors"
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)
    return digest.hexdigest()


def _bytes(head: bytes, tensors: Mapping[str, Stored], pieces: Iterable[Tensor]) -> Iterable[bytes | memoryview]:
    import torch

    yield head
    waiting = iter(tensors.values())
    left = 0
    for piece in pieces:
        while left == 0:
            stored = next(waiting)
            left, dtype = stored.numel, dtype_of(stored.dtype)
        left -= piece.numel()
        yield piece.to(dtype).contiguous().view(torch.uint8).numpy().data
