"""Processes for work that holds Python's lock: one a core, each on one thread, ended with the one that began them.

This file imports nothing heavy: after the main module it is what each of them loads first.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread

# What NumPy's and SciPy's libraries read when they are loaded, if the main module has not loaded them before.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def processes_on_all_cores() -> Iterator[ProcessPoolExecutor]:
    """Yield processes to which functions of a module may be given; what they have not begun at the end is dropped."""
    # Spawned, not forked: the caller may hold threads and a CUDA context.
    pool = ProcessPoolExecutor(num_cores(), get_context("spawn"), _begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """Return how many cores this process may run on: a cluster's job has a few of many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # more would wait for each other on the same cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them: the first process says what becomes
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
