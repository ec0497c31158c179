"""One of several processes that encode on this machine: python -m launch.encode_process CONFIG PART PARTS [K=V ...].

`sonoshard encode --nproc N` starts N of them, and srun may start them on many; each takes an N-th of the part.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from distributed.stop_request import STOP_SIGNALS, heard_signals
from launch.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR, USER_ERRORS
from launch.failure import end_at_once, tell_failure
from launch.freed_memory import keep_freed_memory
from launch.imports import uncollected_imports
from launch.quiet import quiet_libraries
from launch.spawn import stop_with_parent
from launch.streams import outlive_readers


def main(arguments: Sequence[str]) -> NoReturn:
    """Encode and end the process: with 0, 2, 75 when stopped or 130 when interrupted, with 1 after a failure."""
    for number in heard_signals():
        signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    outlive_readers()
    stop_with_parent()
    keep_freed_memory()
    quiet_libraries()
    with uncollected_imports():
        from distributed.rank import rank_from_environment
        from launch.config import load_config
        from launch.prepare import encode_databases

    rank = rank_from_environment()
    config, part, num_parts, *overrides = arguments
    # Every num_parts-th shard is the part, and every world_size-th of those this process's.
    own, all_parts = int(part) + int(num_parts) * rank.index, int(num_parts) * rank.world_size
    try:
        print(encode_databases(load_config(Path(config), overrides), own, all_parts, process=rank.local_index))
    except USER_ERRORS as error:
        print(f"sonoshard: part {own} of {all_parts}: {error}", file=sys.stderr)
        end_at_once(EXIT_USER_ERROR)
    except Exception as error:
        tell_failure(error, rank.index)
        end_at_once(EXIT_FAILED)
    end_at_once(0)


def _end(number: int, _frame: FrameType | None) -> None:
    """End at once: what is finished is kept, and what is not is never read."""
    end_at_once(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED)


if __name__ == "__main__":
    main(sys.argv[1:])
