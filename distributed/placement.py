"""Where a rank trains, and in which numbers."""

import torch

from distributed.config import Precision
from distributed.errors import EngineError
from distributed.rank import Rank


def training_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of weights and activations: `auto` is bfloat16 on CUDA and float32 elsewhere."""
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def training_device(rank: Rank) -> torch.device:
    """Return this rank's device: its own GPU where there is one, else the CPU.

    Raises: EngineError if a node has fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if rank.local_index >= torch.cuda.device_count():
        raise EngineError(
            f"rank {rank.index} is number {rank.local_index} of its node, which shows {torch.cuda.device_count()} GPUs:"
            " start as many ranks a node as it has GPUs, with srun's --gpu-bind=none so that each rank sees them all"
        )
    torch.cuda.set_device(rank.local_index)
    return torch.device("cuda", rank.local_index)
