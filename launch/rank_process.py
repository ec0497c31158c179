"""One rank of a run as a process: python -m launch.rank_process CONFIG [KEY=VALUE ...].

`sonoshard train` starts as many as --nproc says; torchrun may start them directly.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from distributed.errors import EngineError
from distributed.preemption import StoppedOnRequest, StopRequest
from launch.errors import EXIT_STOPPED, EXIT_USER_ERROR, USER_ERRORS
from launch.quiet import quiet_libraries
from launch.spawn import stop_with_parent


def main(arguments: Sequence[str]) -> int:
    """Train as one rank of `CONFIG [KEY=VALUE ...]` and return the exit code: 0, 2 or 75; a failure raises."""
    # Before the imports that take seconds: a signal must not end a rank that is only starting.
    stop = StopRequest()
    stop.listen()
    stop_with_parent()
    quiet_libraries()
    from distributed.rank import join_process_group, leave_process_group, rank_from_environment
    from launch.config import load_config
    from launch.train import train

    rank = rank_from_environment()
    try:
        config = load_config(Path(arguments[0]), arguments[1:])
        config.batch.check_ranks(rank.world_size)
        join_process_group()
        train(config, rank, stop)
    except StoppedOnRequest:
        return EXIT_STOPPED
    except USER_ERRORS as error:
        if rank.is_first:
            print(f"sonoshard: {error}", file=sys.stderr)
        elif isinstance(error, EngineError):  # of this rank's own device; the others are the first rank's to tell
            print(f"sonoshard: rank {rank.index}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        leave_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
