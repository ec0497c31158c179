"""Measures a folder's disk: a large file, small files, a lock. Leaves nothing behind, whatever ends it."""

import fcntl
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

LARGE_FILE_BYTES = 64 << 20
CHUNK_BYTES = 4 << 20
NUM_SMALL_FILES = 100
# For each of writing, reading and small files, seconds.
LIMIT_S = 3.0


def measure(folder: str) -> dict[str, Any]:
    """Return write and read speed in bytes/s, seconds a small file takes, and whether locks work.

    Raises: OSError if the folder cannot be written.
    """
    # A signal may come between the making of a file and its `with`: whatever has this name is removed then.
    prefix = f".sonoshard-doctor-{secrets.token_hex(4)}-"
    try:
        return _measured(folder, prefix)
    except BaseException:
        for left in Path(folder).glob(f"{prefix}*"):
            left.unlink(missing_ok=True)
        raise


def _measured(folder: str, prefix: str) -> dict[str, Any]:
    # Its name is gone before the first byte is written, so that not even a kill leaves it.
    with tempfile.TemporaryFile(prefix=prefix, dir=folder, buffering=0) as file:
        descriptor = file.fileno()
        write_speed, num_bytes = _write(descriptor)
        return {
            "write_speed": write_speed,
            "read_speed": _read(descriptor, num_bytes),
            "small_file_s": _small_files(folder, prefix),
            "lock_problem": _lock_problem(folder, prefix),
        }


def _write(descriptor: int) -> tuple[float, int]:
    """Return bytes/s with all bytes on disk, and how many these were."""
    chunk = os.urandom(CHUNK_BYTES)  # some file systems compress
    started = time.monotonic()
    num_bytes = 0
    while num_bytes < LARGE_FILE_BYTES and time.monotonic() - started < LIMIT_S:
        num_bytes += os.write(descriptor, chunk)
        if num_bytes % (4 * CHUNK_BYTES) == 0:
            os.fsync(descriptor)  # else a slow disk is noticed at the end, beyond the limit
    os.fsync(descriptor)
    return num_bytes / (time.monotonic() - started), num_bytes


def _read(descriptor: int, num_bytes: int) -> float:
    """Return bytes/s of the first read. What a server keeps in its own memory is not forgotten."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.monotonic()
    offset = 0
    while offset < num_bytes and time.monotonic() - started < LIMIT_S:
        offset += len(os.pread(descriptor, CHUNK_BYTES, offset))
    return offset / (time.monotonic() - started)


def _small_files(folder: str, prefix: str) -> float:
    """Return the seconds that making, asking for and removing one small file take."""
    started = time.monotonic()
    count = 0
    while count < NUM_SMALL_FILES and time.monotonic() - started < LIMIT_S:
        with tempfile.NamedTemporaryFile(prefix=prefix, dir=folder) as file:
            file.write(b"x")
            file.flush()
            Path(file.name).stat()
        count += 1
    return (time.monotonic() - started) / count


def _lock_problem(folder: str, prefix: str) -> str | None:
    """Return what is wrong with flock, which keeps two trainings out of one folder; None if nothing is."""
    with tempfile.NamedTemporaryFile(prefix=prefix, dir=folder) as file, Path(file.name).open() as again:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return str(error)
        try:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return "a second process gets a lock that is held"
