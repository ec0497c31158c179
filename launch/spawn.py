"""Starts one process a rank on this machine, passes signals on to them, and ends the others when one fails.

torchrun does nearly this, but answers every failure with exit code 1 and turns a TERM into a kill: a stop that was
asked for must reach the ranks as it came, and their 75 must reach the scheduler.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from distributed.rank import free_port, rank_variables
from launch.errors import EXIT_FAILED, EXIT_STOPPED, ConfigError

# Tells a rank who started it.
PARENT = "SONOSHARD_PARENT"

# What a rank has left to end by itself once another has failed: the collectives it waits in will not return.
GRACE_S = 10.0


def run_ranks(arguments: Sequence[str], num_ranks: int) -> int:
    """Run `python ARGUMENTS` as `num_ranks` ranks and return the exit code for all of them.

    0 if all gave 0; 75 if they stopped on request; else the first failing rank's own code.
    """
    port = free_port()
    threads = str(max(1, (os.cpu_count() or 1) // num_ranks))
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, pass_on)
    for index in range(num_ranks):
        environment = {
            "OMP_NUM_THREADS": threads,
            **os.environ,
            PARENT: str(os.getpid()),
            **rank_variables(index, num_ranks, "127.0.0.1", port),
        }
        # A session of its own: Ctrl-C reaches a rank once, through `pass_on`, not from the terminal too.
        ranks.append(subprocess.Popen([sys.executable, *arguments], env=environment, start_new_session=True))
    try:
        return _wait(ranks)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()


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
    """Return how many ranks a launcher such as torchrun started, this process among them; None where none did.

    Raises: ConfigError if srun started several tasks that do not know of each other.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ConfigError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} tasks, but RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR"
            " and MASTER_PORT are not set, so that each would train alone: set them, or let --nproc start the ranks"
        )
    return None


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Return the exit code for all ranks once they ended, or once one failed and its grace is over."""
    failed: int | None = None
    deadline = float("inf")
    while True:
        codes = [rank.poll() for rank in ranks]
        if failed is None:
            failed = next((index for index, code in enumerate(codes) if code not in (None, 0, EXIT_STOPPED)), None)
            deadline = float("inf") if failed is None else time.monotonic() + GRACE_S
        if None not in codes or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if failed is None:
        return EXIT_STOPPED if EXIT_STOPPED in codes else 0
    code = ranks[failed].returncode
    if code < 0:
        print(f"sonoshard: rank {failed} was ended by {signal.Signals(-code).name}", file=sys.stderr)
        return EXIT_FAILED
    return code
