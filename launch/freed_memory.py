"""Memory that a process has freed and keeps: to get it from the kernel anew takes longer than to compute in it."""

import ctypes
import os
import sys

# Of mallopt(3). Blocks of this size and more are the kernel's again as soon as they are freed, so that a large
# network's tensors leave no holes; glibc before 2.35 takes the second size at most.
_LARGE_BLOCK, _LARGE_BLOCK_BYTES = -3, (2**26, 2**25)
# What is free at the end of the heap is kept up to this size.
_TOP, _TOP_BYTES = -1, 2**29


def keep_freed_memory() -> None:
    """Let this process keep what it frees in blocks below 64 MB, some 512 MB of it, for what it needs next.

    A network on the CPU asks for the same blocks again and again. glibc gives them back each time, and the kernel
    clears every page of the next one: without that the built-in VAE encodes 16 images at once in half the time, and
    the demo's judging takes an eighth less. Nothing where the C library is another one, or where the environment says
    what glibc is to do (`MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES` and others).
    """
    is_said = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if is_said or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # One setting alone would end glibc's own adapting of the other.
    if mallopt is not None and any(mallopt(_LARGE_BLOCK, size) for size in _LARGE_BLOCK_BYTES):
        mallopt(_TOP, _TOP_BYTES)
