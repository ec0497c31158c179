"""How far something is: a moving bar on a terminal, a line now and then in a log file."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0
_WITH_TOTAL = "{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} {unit}s, {remaining} left{postfix}"
_WITHOUT_TOTAL = "{desc} {n_fmt} {unit}s{postfix}"


class Progress:
    """Shows `done` of `total` units (0: not known) on stderr, with the time left and a note."""

    def __init__(self, description: str, unit: str, total: int = 0, done: int = 0) -> None:
        self.total = total
        self._description, self._unit = description, unit
        self._first, self._began = done, time.monotonic()
        self._shown_at = self._began
        self._bar = tqdm(
            total=total or None,
            initial=done,
            desc=description,
            unit=unit,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            bar_format=_WITH_TOTAL if total else _WITHOUT_TOTAL,
        )

    def show(self, done: int, note: str = "") -> None:
        """Say that `done` units are done. note: a few figures that belong to it."""
        if not self._bar.disable:
            self._bar.total = self.total or None
            self._bar.bar_format = _WITH_TOTAL if self.total else _WITHOUT_TOTAL
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown_at >= SECONDS_BETWEEN_LINES or done == self.total:
            self._shown_at = now
            line = f"{self._description}: {done} {self._unit}s"
            if self.total:
                rate = (done - self._first) / (now - self._began)
                left = tqdm.format_interval((self.total - done) / rate) if rate else "?"
                line = f"{self._description}: {done}/{self.total} {self._unit}s, {left} left"
            self.say(f"{line}, {note}" if note else line)

    def say(self, message: str) -> None:
        """Print a line without tearing the bar."""
        tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
