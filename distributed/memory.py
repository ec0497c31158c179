"""What the training state takes on this rank, in bytes by kind."""

import resource

import torch

from distributed.ema import ShardedEma
from distributed.engine import Engine


def measured_bytes(engine: Engine, ema: ShardedEma | None) -> dict[str, int]:
    """Return the bytes that each kind of state holds on this rank between two steps, and the process's peak.

    Keys: parameters, master, optimizer, ema, and peak (on CUDA: most allocated on the device; on CPU: most resident).
    """
    groups = range(len(engine.groups))
    moments = [tensor for group in groups for tensor in engine.moments(group).values()]
    return {
        "parameters": sum(p.nbytes for p in engine.module.parameters()),
        "master": sum(group.master.nbytes for group in engine.groups),
        "optimizer": sum(tensor.nbytes for tensor in moments),
        "ema": sum(slice_.nbytes for slice_ in ema.slices) if ema else 0,
        "peak": _peak_bytes(engine.device),
    }


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
