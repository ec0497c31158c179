"""Starts one process per rank on this machine, passes signals on to them, and ends the others when one fails.

torchrun does nearly this, but answers every failure with exit code 1 and turns a TERM into a kill: a stop that was
asked for must reach the ranks as it came, and their 75 must reach the scheduler.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType

from data.processes import num_cores
from distributed.rank import free_port, rank_variables
from distributed.stop_request import STOP_SIGNALS, heard_signals
from launch.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR
from launch.failure import ERROR_FILE, Failure, cause_first
from launch.srun import is_task, variables_of_task

# Tells a rank who started it.
PARENT = "SONOSHARD_PARENT"

# What a rank has left to end by itself once another has failed, or once it was told to stop at once: the collectives
# that it waits in may not return.
GRACE_S = 10.0


def run_ranks(arguments: Sequence[str], num_ranks: int) -> int:
    """Run `python ARGUMENTS` as `num_ranks` ranks and return the exit code for all of them.

    0 if all gave 0; 75 if they stopped on request; 130 after a second INT; else the first failing rank's own code,
    and stderr tells what that rank failed of.
    """
    with tempfile.TemporaryDirectory(prefix="sonoshard-") as folder:
        ranks = _Ranks(Path(folder))
        try:
            ranks.start(arguments, num_ranks)
            return ranks.wait()
        finally:
            ranks.kill()


def stop_with_parent() -> None:
    """Ask the kernel to send this rank a TERM when the process that started it dies, so that none trains on alone.

    Source: prctl(2), PR_SET_PDEATHSIG; on Linux only. Nothing where a launcher such as torchrun started the rank.
    """
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before the kernel was asked
        os.kill(os.getpid(), signal.SIGTERM)


def world_size_of_launcher() -> int | None:
    """Return how many ranks torchrun or srun started, this process among them; None where none did.

    What srun tells is put into torchrun's variables.
    """
    if "WORLD_SIZE" not in os.environ and is_task(os.environ):
        os.environ.update(variables_of_task(os.environ))
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


class _Ranks:
    """The processes of all ranks, and the folder in which each leaves what it failed of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._deadline = float("inf")
        self._num_interrupts = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, arguments: Sequence[str], num_ranks: int) -> None:
        """Start `python ARGUMENTS` as so many ranks. Raises: OSError if one cannot be started."""
        for number in heard_signals():
            signal.signal(number, self._pass_on)
        port = free_port()
        threads = str(max(1, num_cores() // num_ranks))
        # A signal that comes meanwhile waits: here until all ranks are known, and in a rank, which inherits the mask,
        # until it listens.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for index in range(num_ranks):
                environment = {
                    "OMP_NUM_THREADS": threads,
                    **os.environ,
                    PARENT: str(os.getpid()),
                    ERROR_FILE: str(self._error_file(index)),
                    **rank_variables(index, num_ranks, "127.0.0.1", port),
                }
                # A session of its own: Ctrl-C reaches a rank once, through `_pass_on`, not from the terminal too.
                self._processes[index] = subprocess.Popen(
                    [sys.executable, *arguments], env=environment, start_new_session=True
                )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def wait(self) -> int:
        """Return the exit code for all ranks once they ended, or once one failed and its grace is over."""
        ended_at: dict[int, float] = {}
        while len(ended_at) < len(self._processes) and time.monotonic() < self._deadline:
            for index, process in self._processes.items():
                if index not in ended_at and process.poll() is not None:
                    ended_at[index] = time.time()
                    if process.returncode not in (0, EXIT_STOPPED):
                        self._set_deadline()
            time.sleep(0.05)
        codes = {index: self._processes[index].returncode for index in ended_at}
        failed = [index for index, code in codes.items() if code not in (0, EXIT_STOPPED)]
        if len(codes) == len(self._processes) and not failed:
            return EXIT_STOPPED if EXIT_STOPPED in codes.values() else 0
        if self._num_interrupts > 1 or EXIT_INTERRUPTED in codes.values():
            return self._interrupted(late=self._processes.keys() - codes.keys())
        return self._failed([self._failure(index, codes[index], ended_at[index]) for index in failed])

    def kill(self) -> None:
        """End every rank that still runs."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(number)
        self._num_interrupts += number == signal.SIGINT
        if self._num_interrupts > 1:
            self._set_deadline()

    def _set_deadline(self) -> None:
        self._deadline = min(self._deadline, time.monotonic() + GRACE_S)

    def _interrupted(self, late: Collection[int]) -> int:
        if late:
            print(
                f"sonoshard: interrupted; killed rank {', '.join(map(str, late))}, which did not end", file=sys.stderr
            )
        return EXIT_INTERRUPTED

    def _failed(self, failures: Sequence[Failure]) -> int:
        """Tell of `failures`, the cause on top, and return its exit code.

        That a rank has lost another one is no news beside why; what all ranks raise together is told once.
        """
        cause, *others = cause_first(failures)
        if cause.exit_code == EXIT_USER_ERROR:
            codes = {failure.rank: failure.exit_code for failure in failures}
            # The first rank says its one line itself; another one leaves it, as it may be alone in seeing the mistake.
            if codes.get(0) != EXIT_USER_ERROR and self._error_file(cause.rank).exists():
                print(f"sonoshard: rank {cause.rank}: {cause.message}", file=sys.stderr)
            return EXIT_USER_ERROR
        print(cause.text(is_cause=True), file=sys.stderr)
        for failure in others:
            if failure.message != cause.message and not failure.is_of_lost_rank:
                print(failure.text(is_cause=False), file=sys.stderr)
        return cause.exit_code if cause.exit_code > 0 else EXIT_FAILED

    def _failure(self, index: int, exit_code: int, ended_at: float) -> Failure:
        return Failure.read(self._error_file(index), index, exit_code, ended_at)

    def _error_file(self, index: int) -> Path:
        return self._folder / f"rank-{index}.json"
