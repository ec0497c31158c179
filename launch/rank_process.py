"""One rank of a run as a process: python -m launch.rank_process CONFIG [KEY=VALUE ...].

`sonoshard train --nproc N` starts several so, and is itself a single one; srun or torchrun may start them directly.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from distributed.stop_request import StoppedOnRequest, StopRequest
from launch.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR, USER_ERRORS
from launch.failure import end_at_once, leave_mistake, tell_failure
from launch.freed_memory import keep_freed_memory
from launch.imports import uncollected_imports
from launch.quiet import quiet_libraries
from launch.spawn import stop_with_parent
from launch.streams import outlive_readers

# What the first rank has to tell a person's mistake before another one's end makes a launcher end it.
TELLING_S = 3.0


def main(arguments: Sequence[str]) -> NoReturn:
    """Train as one rank of `CONFIG [KEY=VALUE ...]` and end the process: with 0, 2 or 75, with 1 after a failure.

    A second INT ends it at any time, with 130.
    """
    # Before the imports that take seconds: a signal must not end a rank that is only starting.
    stop = listen_for_stop()
    outlive_readers()
    stop_with_parent()
    keep_freed_memory()
    quiet_libraries()
    from distributed.rank import leave_process_group, rank_from_environment, wait_for_all

    rank = rank_from_environment()
    try:
        train_as_rank(Path(arguments[0]), arguments[1:], stop)
    except StoppedOnRequest:
        # srun ends the other tasks of a step when one of them ends with anything but 0: all are done before any ends.
        wait_for_all()
        end_at_once(EXIT_STOPPED)
    except USER_ERRORS as error:
        if rank.is_first:
            print(f"sonoshard: {error}", file=sys.stderr)
        elif not leave_mistake(error):
            # Most mistakes are seen by all ranks, and are the first one's to tell: its end makes srun end the others.
            time.sleep(TELLING_S)
            print(f"sonoshard: rank {rank.index}: {error}", file=sys.stderr)
        # No clean-up, here and below: leaving the process group may wait for ranks that wait for this one.
        end_at_once(EXIT_USER_ERROR)
    except Exception as error:
        tell_failure(error, rank.index)
        end_at_once(EXIT_FAILED)
    leave_process_group()
    # Not by the interpreter's own end: there torch's and gloo's threads are taken down in an order that aborted one
    # process in some forty, after all of its work was done.
    end_at_once(0)


def listen_for_stop() -> StopRequest:
    """Return what remembers the signals that come from now on; a second INT ends this process."""
    stop = StopRequest()
    stop.listen(lambda: _stop_at_once(stop))
    return stop


def train_as_rank(path: Path, overrides: Sequence[str], stop: StopRequest, until: str | None = None) -> None:
    """Train a configuration's stages as the rank that the environment says. until: the last stage's name. None: all.

    Raises: StoppedOnRequest, or what is wrong.
    """
    with uncollected_imports():
        from distributed.rank import join_process_group, rank_from_environment
        from launch.config import load_config

        rank = rank_from_environment()
        config = load_config(path, overrides)
        config.batch.check_ranks(rank.world_size)
        from launch.train import train
        from models.stable_diffusion import import_libraries

        # Where a model is first loaded, the first rank alone would import them while the others wait, then these.
        import_libraries()
        join_process_group()  # which imports DeepSpeed
    train(config, rank, stop, until)


def _stop_at_once(stop: StopRequest) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        beyond_the_bar = "\n" if sys.stderr.isatty() else ""
        line = f"sonoshard: interrupted; {stop.newest_save}; run the same command again to go on"
        print(f"{beyond_the_bar}{line}", file=sys.stderr)
    end_at_once(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main(sys.argv[1:])
