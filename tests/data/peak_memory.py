"""What Python, NumPy and Arrow allocate at most; torch's bytes are not counted."""

import tracemalloc
from collections.abc import Callable

import pyarrow as pa

# They stay: Arrow's threads give memory back to a pool even after the call that took it, and crash if it is gone.
POOLS: list[pa.MemoryPool] = []


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that there were at a time while `work` ran."""
    before = pa.default_memory_pool()
    arrow = pa.proxy_memory_pool(before)
    POOLS.append(arrow)
    pa.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] + arrow.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
