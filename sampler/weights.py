"""Weights from a safetensors file, mapped into memory; those stored in fewer bits are expanded to float32."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sampler.errors import SamplerError

DTYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "I64": np.int64, "I32": np.int32, "F64": np.float64}
# Of a tensor stored as int8: what each output channel (the first axis) is multiplied by.
SCALE = ".scale"
MAX_HEADER_BYTES = 100 * 2**20  # what the safetensors library accepts


def mapped_tensors(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return a file's tensors by name, read-only and mapped: they take no memory until they are read.

    Format: 8 bytes, little-endian, of the header's length; the header, JSON; the bytes of the tensors.
    Raises: SamplerError if the file is not of that format.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(MAX_HEADER_BYTES, size):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(opened.read(length))
        content = np.memmap(path, np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
        tensors: dict[str, NDArray[np.generic]] = {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            start, stop = about["data_offsets"]
            if not 0 <= start <= stop <= len(content):
                raise ValueError(f"{name} lies outside the file")
            tensors[name] = content[start:stop].view(DTYPES[about["dtype"]]).reshape(about["shape"])
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise SamplerError(f"{path} is no safetensors file that this sampler reads ({error}); export again") from error
    return tensors


def expanded(tensors: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Return tensors with float16 and scaled int8 as float32; the others as they are."""
    full: dict[str, NDArray[np.generic]] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            continue
        scale = tensors.get(name + SCALE)
        if scale is not None:
            per_channel = scale.astype(np.float32).reshape(-1, *[1] * (tensor.ndim - 1))
            full[name] = tensor.astype(np.float32) * per_channel
        else:
            full[name] = tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor
    return full
