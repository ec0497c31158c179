"""A network's weights in one .safetensors file, written tensor by tensor, in the precision of the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.merging.source import Place, stored_places
from sampler.weights import SCALE

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp32", "fp16", "int8"]
DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I8": np.dtype("i1")}
# Of a tensor with fewer numbers than this int8 saves nothing worth its error.
LEAST_INT8_SIZE = 4096

Array = NDArray[Any]


def write_weights(file: Path, tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Place]:
    """Write tensors to a .safetensors file and return their places; one of them is in memory at a time.

    fp16: all of them. int8: those with many numbers, as numbers from -127 to 127 times NAME.scale, one float32 of each
    output channel (the first axis), and the rest as fp16. The same tensors give the same bytes.
    Source: the format, https://github.com/huggingface/safetensors#format; symmetric quantisation per channel,
    Krishnamoorthi 2018 (arXiv:1806.08342), section 2.2.
    Raises: ModelError for a number that is not finite, or too large for float16.
    """
    sizes = {
        name: (dtype, shape)
        for whole, tensor in tensors.items()
        for name, dtype, shape in _members(whole, tuple(tensor.shape), precision)
    }
    # Wide types first, as the library does, so that every tensor is aligned to its type.
    order = sorted(sizes, key=lambda name: (-DTYPES[sizes[name][0]].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "precision": precision}}
    end = 0
    for name in order:
        dtype, shape = sizes[name]
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as stored:
        stored.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            whole = name.removesuffix(SCALE) if name not in tensors else name
            stored.write(_content(name, whole, tensors[whole], sizes[name][0]).tobytes())
    return stored_places(file)


def _members(name: str, shape: tuple[int, ...], precision: Precision) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield name, dtype and shape of what a tensor is stored as."""
    if precision == "int8" and len(shape) > 1 and np.prod(shape) >= LEAST_INT8_SIZE:
        yield name, "I8", shape
        yield name + SCALE, "F32", shape[:1]
    else:
        yield name, "F32" if precision == "fp32" else "F16", shape


def _content(name: str, whole: str, tensor: Tensor, dtype: str) -> Array:
    array: NDArray[np.float32] = tensor.detach().float().contiguous().numpy()
    if not np.isfinite(array).all():
        raise ModelError(f"{whole} holds numbers that are not finite: its training failed; export an earlier model")
    if name == whole and dtype == "F32":
        return array.astype("<f4", copy=False)
    if dtype == "F16":
        if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise ModelError(f"{whole} holds numbers beyond 65504, too large for fp16 and int8: use --precision fp32")
        return array.astype("<f2")
    scale = np.abs(array).reshape(len(array), -1).max(axis=1) / 127
    scale[scale == 0] = 1
    if dtype == "F32":
        return scale.astype("<f4")
    per_channel = scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
    return np.rint(array / per_channel).clip(-127, 127).astype(np.int8)
