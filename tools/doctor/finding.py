"""What a check answers with: one line for a person, and whether something must be mended."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread
from typing import Literal

Verdict = Literal["fine", "note", "mend"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing, and what to do about it. mend: something that is needed is missing or wrong."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def fine(name: str, found: str) -> Finding:
    """Return that a thing is as it should be."""
    return Finding(name, "fine", found)


def note(name: str, found: str, advice: str = "") -> Finding:
    """Return what a person should know, and perhaps do; runs work without it."""
    return Finding(name, "note", found, advice)


def mend(name: str, found: str, advice: str) -> Finding:
    """Return what must be mended before a run can work."""
    return Finding(name, "mend", found, advice)


# A check does not know of the others, and may fail or hang.
Check = Callable[[], Iterable[Finding]]
# More than the longest that a check gives to a program that it runs.
LIMIT_S = 240.0


def findings_of(name: str, check: Check, limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """Yield what a check finds. One that fails, or finds nothing within `limit_s`, is a note of that name.

    It runs in a thread of its own, which is left behind where a dead disk holds it.
    """
    answers: Queue[Finding | None] = Queue()

    def run() -> None:
        try:
            for finding in check():
                answers.put(finding)
        except Exception as error:  # a machine that is ill may fail in any way; the other checks are still wanted
            reason = " ".join(str(error).split()) or "no reason given"
            answers.put(note(name, f"this check failed: {type(error).__name__}: {reason}"))
        answers.put(None)

    Thread(target=run, daemon=True).start()
    try:
        while (finding := answers.get(timeout=limit_s)) is not None:
            yield finding
    except Empty:
        yield note(name, f"this check did not end within {limit_s:g} s", "a disk may not answer: see those above")
