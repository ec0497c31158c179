"""The processes of a run, found from the outside. Linux only."""

from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the process ids of what any thread of a process started and that still runs."""
    pids = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
            pids += [int(child) for child in file.read_text(encoding="utf-8").split()]
    return pids


def rank_pids(spawner: int) -> dict[int, int]:
    """Return the process id of each rank that `spawner` started and that still runs."""
    pids = {}
    for child in children(spawner):
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        pids.update({int(v.removeprefix(b"RANK=")): child for v in variables if v.startswith(b"RANK=")})
    return pids
