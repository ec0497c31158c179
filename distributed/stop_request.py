"""A request to stop: signals set a flag here, and the ranks agree on it at a step boundary."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


# What SLURM, submitit, a person at the keyboard and a terminal that is closed send. All mean: save at the next step,
# then exit with 75.
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def heard_signals() -> list[signal.Signals]:
    """Return those of `STOP_SIGNALS` that stop this process: a closed terminal does not where nohup started it."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def handlers_put_back() -> Iterator[None]:
    """Within it a StopRequest may listen; afterwards `STOP_SIGNALS` have the handlers that they had."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class StoppedOnRequest(Exception):
    """A stop was asked for, and the ranks agreed. Where it leaves a stage, a checkpoint is saved."""


class StopRequest:
    """Remembers that one of `STOP_SIGNALS` came.

    newest_save: what the run would go on from, for who stops at once; whoever saves keeps it up to date.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.newest_save = "training has not begun"

    def listen(self, stop_at_once: Callable[[], object] | None = None) -> None:
        """Install the handlers, in the main thread.

        stop_at_once: called in a thread of its own when an INT comes after another signal; ends the process. None:
        such an INT is like the first one.
        """
        for number in heard_signals():
            signal.signal(number, self._remember)
        if stop_at_once is not None:
            # Python runs a handler between two instructions of the main thread, which may be waiting for another rank
            # in the midst of one. The byte that the interpreter writes for each signal is there at once.
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
            threading.Thread(target=_watch, args=(reader, stop_at_once), name="second-int", daemon=True).start()
        # Whoever started this process may have kept them back until now, so that none is lost or ends it meanwhile.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)

    def is_agreed(self, device: "torch.device") -> bool:
        """Return whether any rank was asked to stop. Collective: every rank calls it at the same step."""
        # Imported here, so that a rank can listen for signals before it spends seconds on importing torch.
        import torch
        import torch.distributed as dist

        flag = torch.tensor([self.received is not None], dtype=torch.int32, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def raise_if_agreed(self, device: "torch.device") -> None:
        """Raise StoppedOnRequest if any rank was asked to stop. Collective."""
        if self.is_agreed(device):
            raise StoppedOnRequest


def _watch(reader: int, stop_at_once: Callable[[], object]) -> None:
    """Read the numbers of the signals that come, and call `stop_at_once` for an INT that is not the first of them."""
    num_requests = 0
    while number := os.read(reader, 1):
        if num_requests > 0 and number[0] == signal.SIGINT:
            stop_at_once()
        num_requests += number[0] in STOP_SIGNALS
