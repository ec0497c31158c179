"""How the tests share a machine where several processes test."""

import os

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is imported: more threads than cores take turns.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
