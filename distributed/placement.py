"""Where a rank trains, and in which numbers."""

import os
from collections.abc import Iterable, Mapping
from socket import gethostname

import torch
from torch import Tensor

from distributed.config import Precision
from distributed.errors import EngineError
from distributed.paged_memory import is_paged
from distributed.rank import Rank


def training_dtype(precision: Precision, on_gpu: bool | None = None) -> torch.dtype:
    """Return the dtype of weights and activations: `auto` is bfloat16 on CUDA and float32 elsewhere.

    on_gpu: whether it is asked about a machine with CUDA; None: about this one.
    """
    if precision == "auto":
        on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
        return torch.bfloat16 if on_gpu else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def training_device(rank: Rank) -> torch.device:
    """Return this rank's device: its own GPU where there is one, else the CPU.

    Raises: EngineError if a node has fewer GPUs than ranks, or if SLURM gave this job GPUs and torch finds none. With
    DS_ACCELERATOR=cpu that is not looked at.
    """
    if not torch.cuda.is_available():
        given = os.environ.get("SLURM_GPUS_ON_NODE", "0")
        if given != "0" and os.environ.get("DS_ACCELERATOR") != "cpu":
            raise EngineError(
                f"this job has {given} GPUs on {gethostname()}, of which torch {torch.__version__} finds none:"
                " `sonoshard doctor` in a job there says why; DS_ACCELERATOR=cpu trains on the CPU all the same"
            )
        return torch.device("cpu")
    if rank.local_index >= torch.cuda.device_count():
        raise EngineError(
            f"rank {rank.index} is number {rank.local_index} of its node, which shows {torch.cuda.device_count()} GPUs:"
            " start as many ranks per node as it has GPUs, with srun's --gpu-bind=none so that each rank sees them all"
        )
    torch.cuda.set_device(rank.local_index)
    return torch.device("cuda", rank.local_index)


def bytes_by_kind(kinds: Mapping[str, Iterable[Tensor]], device: torch.device) -> dict[str, int]:
    """Return the bytes of the memory that tensors lie in, by kind: those that are not on `device` as `KIND, host`.

    Memory that several tensors of a kind share counts once, and whole where they are views of a part of it. What CUDA
    pages, which torch takes for host memory, counts as on the device.
    """
    found: dict[str, int] = {}
    for kind, tensors in kinds.items():
        found[kind] = 0
        storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.numel() > 0}
        for tensor in storages.values():
            is_there = tensor.device.type == device.type or is_paged(tensor)
            name = kind if is_there else f"{kind}, host"
            found[name] = found.get(name, 0) + tensor.untyped_storage().nbytes()
    return found
