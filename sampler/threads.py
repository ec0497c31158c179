"""How many threads this process may use."""

import os


def num_threads() -> int:
    """Return the number of cores that this process may run on, or OMP_NUM_THREADS where that is fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, min(cores, int(wanted))) if wanted.isdigit() else cores
