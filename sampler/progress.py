"""A line on stderr that says how far drawing is; quiet where nobody looks."""

from __future__ import annotations

import sys
import time
from typing import TextIO

BAR = 28


class ProgressBar:
    """A bar that is drawn over itself. total: images. Nothing is written where stderr is no terminal."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total = total
        self._is_shown = self._stream.isatty()
        self._began = time.monotonic()

    def __call__(self, done: float) -> None:
        """Show that `done` images are drawn, with parts of the one at work."""
        if not self._is_shown or not self._total:
            return
        share = done / self._total
        left_s = (time.monotonic() - self._began) * (1 - share) / share if share else 0.0
        bar = "#" * round(BAR * share)
        minutes, seconds = divmod(round(left_s), 60)
        told = f"[{bar:.<{BAR}}] {int(done)}/{self._total} images, {minutes}:{seconds:02} left"
        self._stream.write(f"\r\x1b[K{told}")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._is_shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
