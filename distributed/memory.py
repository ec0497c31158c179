"""What the training state takes on this rank, in bytes by kind."""

import resource

import torch

from distributed.ema import ShardedEma
from distributed.engine import Engine


def measured_bytes(engine: Engine, ema: ShardedEma) -> dict[str, int]:
    """Return the bytes that each kind of state holds on this rank, and the process's peak.

    Keys: parameters, gradients, master, optimizer, ema, and peak (on CUDA: most allocated on the device; on CPU: most
    resident).
    """
    averages = sum(slice_.nbytes for slices in ema.slices.values() for slice_ in slices)
    return {**engine.state_bytes(), "ema": averages, "peak": _peak_bytes(engine.device)}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
