"""Imports that take seconds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """Within it nothing is looked through for garbage, and what is there at its end never is again.

    The libraries make a million objects that stay: looking through them is a fifth of the time that imports take, and
    half a second whenever a stage ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
