"""One process at a time writes a file of a folder of shards, whatever the parts that each was given."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import DataError

LOCK_FILE = ".encode.lock"


@contextmanager
def writing(folder: Path, name: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the byte of the folder's lock file that stands for `name`; the operating system lets go at this one's end.

    wait: until another process lets go of it. One name at a time in a process: POSIX takes all locks of a file from
    who closes it. Raises: DataError, unless waiting, if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    with (folder / LOCK_FILE).open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):
            raise DataError(
                f"{folder / name} is being written by another process: wait for it, or give each process a part of"
                " its own (--part, --parts)"
            ) from None
        except OSError as error:  # such as a Lustre without flock
            raise DataError(f"{folder} cannot be locked: {error.strerror}; encode into another folder") from error
        yield
