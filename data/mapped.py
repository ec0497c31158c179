"""Arrays that are mapped from a file, and what of them stays in memory."""

import mmap
from typing import Any

from numpy.typing import NDArray


def let_go(array: NDArray[Any]) -> None:
    """Take the pages of an array that is mapped from a file out of this process's memory.

    The array stays as it is: its pages come back, from the page cache, when they are used again, and what was written
    to a shared map is kept. See madvise(2), MADV_DONTNEED.
    """
    owner: Any = array
    while not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    owner.madvise(mmap.MADV_DONTNEED)
