"""The processes of a run, found from the outside."""

from pathlib import Path


def rank_pids(spawner: int) -> dict[int, int]:
    """Return the process id of each rank that `spawner` started and that still runs. Linux only."""
    children = Path(f"/proc/{spawner}/task/{spawner}/children").read_text(encoding="utf-8").split()
    pids = {}
    for child in children:
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        pids.update({int(v.removeprefix(b"RANK=")): int(child) for v in variables if v.startswith(b"RANK=")})
    return pids
