"""stdout and stderr that a run outlives: who reads them (a terminal, `tee`) may end first, their disk may be full."""

import errno
import os
import sys
from typing import Any, TextIO

# What writing gives once nobody reads: a pipe's other end, or a terminal, is closed.
_NOBODY_READS = (errno.EPIPE, errno.EIO)


def outlive_readers() -> None:
    """Make writing to stdout and stderr never fail: what cannot be written is lost, the run goes on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Lasting):
            setattr(sys, name, _Lasting(stream))


class _Lasting:
    """A text stream whose `write` and `flush` raise no OSError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as failure:
            self._is_lost(failure)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as failure:
            self._is_lost(failure)

    def _is_lost(self, failure: OSError) -> None:
        """Send the rest nowhere, where nobody will read it: what is buffered would fail again as the process ends."""
        if failure.errno in _NOBODY_READS:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
