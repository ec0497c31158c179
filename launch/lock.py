"""One training at a time in a run's folder: two would replace each other's checkpoints."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.errors import ConfigError


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold RUN/.lock, which says who trains there. The operating system lets go of it when this process ends.

    Raises: ConfigError if another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{run} is being trained by {file.read().strip() or 'another process'}: wait for it or stop it, or give"
                " this run another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
