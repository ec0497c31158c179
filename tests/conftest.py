"""How the tests share a machine: files side by side, each in one process, the longest first."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# What takes minutes, begun first so that no process is left alone with it at the end.
LONGEST = ("slurm", "tools/test_demo.py")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is imported: more threads than cores take turns.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares a fixture: the tests of a file, and all that run on the Slurm cluster."""
    items.sort(key=lambda item: _turn(_group(item)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    path = item.path.relative_to(TESTS)
    return "slurm" if item.get_closest_marker("slurm") else path.as_posix()


def _turn(group: str) -> int:
    return LONGEST.index(group) if group in LONGEST else len(LONGEST)
