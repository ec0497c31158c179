"""One training at a time in a run's folder: two would replace each other's checkpoints."""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.errors import ConfigError

LOCK_FILE = ".lock"
_NAME = re.compile(r"process (?P<process>\d+) on (?P<host>\S+)\s*")
# The kernel's list of who holds which lock on this machine.
_LOCKS = Path("/proc/locks")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold RUN/.lock, which says who trains there. The operating system lets go of it when this process ends.

    Raises: ConfigError if another process holds it, or nothing can be locked there.
    """
    with ExitStack() as opened:
        try:
            run.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context((run / LOCK_FILE).open("a+", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = None
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
        except OSError as error:
            raise ConfigError(f"{run} cannot be written and locked: {error}; give this run another folder") from error
        if holder is not None:
            raise ConfigError(
                f"{run} is being trained by {holder}: wait for it or stop it, or give this run another folder"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        os.fsync(file.fileno())  # other nodes are told who holds it
        yield


@dataclass(frozen=True)
class Holder:
    """Who trains in a run's folder, or was the last to. is_there: whether it still does; None: not seen from here."""

    process: int
    host: str
    is_there: bool | None


def lock_holder(run: Path) -> Holder | None:
    """Return who holds RUN/.lock or held it last; None where nobody ever trained. Only looks.

    Trying the lock, even a shared one for a moment, would refuse a trainer that begins in that moment. So the kernel's
    own list says who has it: on this machine alone.
    """
    path, here = run / LOCK_FILE, socket.gethostname()
    try:
        text = path.read_text(encoding="utf-8")
        holder = _flock_holder(path, text)
    except FileNotFoundError:
        return None
    if holder is not None:  # also one that has the lock and has not yet written its name
        return Holder(holder, here, is_there=True)
    if not (said := _NAME.fullmatch(text)):
        return None
    process, host = int(said["process"]), said["host"]
    is_unseen = host != here or (not _LOCKS.exists() and _is_alive(process))
    return Holder(process, host, None if is_unseen else False)


def _flock_holder(path: Path, text: str) -> int | None:
    """Return the process of this machine that holds a flock of a file, which says `text`; None where none is seen."""
    try:
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        return None
    file, said = path.stat(), _NAME.fullmatch(text)
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    for line in lines:
        if " FLOCK " not in line or "->" in line:
            continue
        # 1: FLOCK  ADVISORY  WRITE 13657 fe:00:2146516 0 EOF
        process, place = line.split()[4:6]
        # btrfs and overlays have other devices in this list than in `stat`: there the name has to do.
        known = place == f"{device}:{file.st_ino}" or (said is not None and said["process"] == process)
        if known and place.endswith(f":{file.st_ino}"):
            return int(process)
    return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
