"""Runs other programs for a limited time: a dead disk, driver or controller makes them hang, or crash."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
# What a program may take to clean up after itself when it is told to end.
CLEAN_UP_S = 3.0
_running: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True)
class Answer:
    """What a program printed. problem: why that is not to be trusted, in words; None if it ended well."""

    stdout: str
    problem: str | None


def answer_of(command: Sequence[str], timeout_s: float = 10.0, cwd: Path | None = None) -> Answer:
    """Return what a program prints within `timeout_s`. It never raises, and waits for no process that cannot die."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
        )
    except OSError as error:
        return Answer("", str(error))
    _running.add(process)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Answer("", f"no answer within {timeout_s:g} s")
    finally:
        _end(process)
        _running.discard(process)
    if process.returncode == 0:
        return Answer(stdout, None)
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = said[-1] if said else "it said nothing"
    how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    return Answer(stdout, f"{reason} ({how})")


def probed(name: str, *arguments: str, timeout_s: float = 180.0) -> dict[str, Any]:
    """Return the facts that one function of `tools/doctor/probe.py` finds in a process of its own.

    `problem` is among them, and alone, if that process failed, crashed or hung.
    """
    answer = answer_of([sys.executable, "-m", "tools.doctor.probe", name, *arguments], timeout_s, CHECKOUT)
    if answer.problem is not None:
        return {"problem": answer.problem}
    facts: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])  # libraries may print, too
    return facts


def end_running() -> None:
    """End what a check still runs, and wait until it has cleaned up."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process that still runs; one that waits for a dead disk cannot even be killed, and is left behind."""
    for end in (process.terminate, process.kill):
        if process.poll() is None:
            end()
            try:
                process.wait(CLEAN_UP_S)
            except subprocess.TimeoutExpired:
                continue
