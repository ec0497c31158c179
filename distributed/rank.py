"""Who this process is among the others, and the process group that joins them."""

import os
import signal
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from distributed.errors import EngineError
from distributed.stop_request import STOP_SIGNALS

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Rank:
    """This process's place: `index` of `world_size` over all nodes, `local_index` on its own node."""

    index: int
    world_size: int
    local_index: int

    @property
    def is_first(self) -> bool:
        """True on the one process that prints, logs and names checkpoints."""
        return self.index == 0


def rank_from_environment() -> Rank:
    """Return this process's rank from torchrun's variables; alone (1 rank) where none of them is set.

    Raises: EngineError if some are set and others not, which would make DeepSpeed ask for MPI.
    """
    present = [name for name in _VARIABLES if name in os.environ]
    if not present:
        os.environ.update(rank_variables(0, 1, "127.0.0.1", free_port()))
    elif len(present) < len(_VARIABLES):
        missing = ", ".join(name for name in _VARIABLES if name not in os.environ)
        raise EngineError(
            f"{', '.join(present)} set but not {missing}: set all five, or none and let --nproc start the ranks"
        )
    return Rank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))


def rank_variables(
    index: int, world_size: int, address: str, port: int, *, local_index: int | None = None
) -> dict[str, str]:
    """Return the five environment variables that place one process. local_index: None on a single node."""
    values = (index, world_size, index if local_index is None else local_index, address, port)
    return dict(zip(_VARIABLES, map(str, values), strict=True))


def free_port() -> int:
    """Return a TCP port that nothing on the loopback interface listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def join_process_group() -> None:
    """Join the process group of all ranks: NCCL where there is CUDA, gloo elsewhere.

    Raises: EngineError if a node has fewer GPUs than ranks.
    """
    import torch

    from distributed.placement import training_device

    # NCCL's collectives of objects lie on the current GPU: it must be this rank's own before the first one.
    training_device(rank_from_environment())
    # Whoever started this rank may have kept signals back until it listens; one that never does is to end by them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if not torch.cuda.is_available():
        # Without this DeepSpeed looks for an accelerator by importing what each vendor ships.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")  # it warns of every client optimizer
    # DeepSpeed's shared-memory collective is compiled at first use: 105 s cold, and a crash without a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls collectives by names that torch 2.13 has renamed, and torch warns at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    deepspeed.init_distributed(verbose=False)


def raise_together(error: str | None, rank: Rank, kind: type[Exception] = RuntimeError) -> None:
    """Raise `kind` with the first error of any rank, on every rank; nothing if there is none. Collective.

    An exception on one rank alone would leave the others waiting in their next collective.
    """
    import torch.distributed as dist

    errors: list[str | None] = [None] * rank.world_size
    dist.all_gather_object(errors, error)
    for index, message in enumerate(errors):
        if message is not None:
            raise kind(f"rank {index}: {message}")


def from_first_rank(rank: Rank, function: Callable[[], T]) -> T:
    """Return on every rank what `function` returns on the first one; its ValueError is raised on all. Collective."""
    import torch.distributed as dist

    outcome: list[T | ValueError | None] = [None]
    if rank.is_first:
        try:
            outcome = [function()]
        except ValueError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return cast(T, outcome[0])


def wait_for_all() -> None:
    """Return once every rank is here. Collective."""
    import torch.distributed as dist

    dist.barrier()


def leave_process_group() -> None:
    """Leave the process group, if one was joined."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
