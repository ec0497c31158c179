"""How the tests share a machine: files side by side, each in one process, the longest first."""

import os
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# What takes minutes, begun first so that no process is left alone with it at the end.
LONGEST = ("tests/slurm", "tests/tools/test_demo.py")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is imported: more threads than cores take turns.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


class FileScheduling(LoadFileScheduling):
    """Gives each process whole files, and one of them all those whose tests run on the Slurm cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    """Return what deals out the tests where there are several processes."""
    return FileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    return next((turn for turn, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))
