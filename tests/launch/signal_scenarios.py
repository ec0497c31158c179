"""Small programs as the ranks of run_ranks, without training.

python -m tests.launch.signal_scenarios wait|raise|both|kill|mistake [NUM_RANKS]     runs itself as so many ranks
"""

import os
import signal
import sys
import time

from distributed.stop_request import StopRequest
from launch.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER_ERROR, ConfigError
from launch.failure import end_at_once, leave_mistake, tell_failure
from launch.spawn import run_ranks, stop_with_parent


def wait_for_a_signal() -> int:
    os.write(1, b"about to listen\n")  # in one piece: both ranks write into one pipe
    time.sleep(0.1)  # a signal that comes now must wait
    stop = StopRequest()
    stop.listen()
    stop_with_parent()
    while stop.received is None:
        time.sleep(0.01)  # signal.pause would miss one that came just before it
    return EXIT_STOPPED


def lose_a_rank(how: str) -> int:
    """Reduce over ranks 0 and 2, which wait for rank 1, which fails."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    try:
        dist.barrier()
        if rank == 1 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and how == "mistake":
            leave_mistake(ConfigError("seen by this rank alone"))
            end_at_once(EXIT_USER_ERROR)
        if rank == 1:
            raise ArithmeticError("this rank\nalone")
        dist.all_reduce(torch.zeros(1))
    except Exception as error:
        # Rank 0 has lost the other one, and so comes after it.
        tell_failure(LookupError("and this one") if how == "both" and rank == 0 else error, rank)
        end_at_once(EXIT_FAILED)
    return 0


def main(action: str, num_ranks: int | None) -> int:
    if num_ranks is not None:
        return run_ranks(["-m", "tests.launch.signal_scenarios", action], num_ranks)
    return wait_for_a_signal() if action == "wait" else lose_a_rank(action)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None))
