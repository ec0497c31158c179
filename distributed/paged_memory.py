"""CUDA's managed memory, which bitsandbytes takes for paged moments and has no way to free: kept for the next stage's.

It belongs to the process, so without this every stage of a run would leave its moments behind.
"""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

# Elements; bitsandbytes leaves a smaller slice's moments on the GPU.
LEAST_PAGED = 100_000

# As bytes, what no engine uses now.
_KEPT: list[Tensor] = []


def is_paged(tensor: Tensor) -> bool:
    """Return whether a tensor lies in managed memory: for torch it is the host's."""
    return bool(getattr(tensor, "is_paged", False))


def keep_memory(moments: Iterable[Tensor]) -> None:
    """Keep the memory of those of `moments` that are paged, which nobody looks at any more, for `zeros_of_kept`."""
    # The two rows of AdEMAMix's share one.
    storages = {moment.untyped_storage().data_ptr(): moment.untyped_storage() for moment in moments if is_paged(moment)}
    _KEPT.extend(torch.empty(0, dtype=torch.uint8).set_(storage) for storage in storages.values())


def zeros_of_kept(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return zeros that bitsandbytes takes for a paged tensor of `device`; None where no kept memory is large enough.

    They may be a part of what is kept; all of it comes back with them.
    """
    num_bytes = dtype.itemsize * prod(shape)
    fitting = [index for index, kept in enumerate(_KEPT) if kept.numel() >= num_bytes]
    if not fitting:
        return None
    kept = _KEPT.pop(min(fitting, key=lambda index: _KEPT[index].numel()))
    zeros = kept[:num_bytes].view(dtype).view(shape).zero_()
    zeros.is_paged, zeros.page_deviceid = True, device.index  # type: ignore[attr-defined]
    return zeros
