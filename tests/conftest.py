"""How the tests share a machine: one thread each where several processes test, and what takes longest first."""

import os

import pytest

# Begun first, so that no process is left alone with it at the end.
LONGEST = "tests/tools/test_demo.py"

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is imported: more threads than cores take turns.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
