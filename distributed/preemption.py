"""A request to stop: signals set a flag here, and the ranks agree on it at a step boundary."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


# What SLURM, submitit and a person at the keyboard send. All mean: save at the next step, then exit with 75.
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StoppedOnRequest(Exception):
    """A stop was asked for, the ranks agreed, and a checkpoint is saved."""


class StopRequest:
    """Remembers that one of `STOP_SIGNALS` came; a second one that is an INT stops at once.

    newest_save: what the run would go on from, for who stops at once; whoever saves keeps it up to date.
    """

    def __init__(self, stop_at_once: Callable[[], object] | None = None) -> None:
        """stop_at_once: called in the signal handler, does not return. None: KeyboardInterrupt is raised."""
        self.received: signal.Signals | None = None
        self.newest_save = "training has not begun"
        self._stop_at_once = stop_at_once

    def listen(self) -> None:
        """Install the handlers, in the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            if self._stop_at_once is not None:
                self._stop_at_once()
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def is_agreed(self, device: "torch.device") -> bool:
        """Return whether any rank was asked to stop. Collective: every rank calls it at the same step."""
        # Imported here, so that a rank can listen for signals before it spends seconds on importing torch.
        import torch
        import torch.distributed as dist

        flag = torch.tensor([self.received is not None], dtype=torch.int32, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
