"""Event files of starts that follow one another in one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from unittest.mock import patch

from tensorboard.summary.writer import event_file_writer


@contextmanager
def seconds_between_event_files() -> Iterator[None]:
    """Within it a second passes between two writers, as between the starts of a run.

    TensorBoard's reader takes files in the order of their names, which hold a second and a number: of one second, the
    tenth file of a process comes before its ninth, and the ninth, a start's of long ago, hides what that one holds.
    """
    seconds = count(1_800_000_000)
    with patch.object(event_file_writer, "time", SimpleNamespace(time=lambda: next(seconds))):
        yield
