"""The process of the demo's last steps: what it told is told in its turn, how it ended is answered, it is not left."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.errors import EXIT_FAILED
from tools.demo.later import Later

WAIT_S = 30


def python(program: str) -> Later:
    return Later([sys.executable, "-c", program], dict(os.environ))


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[Later, Path]]:
    """A process that works on for minutes, which an interrupt makes write to the file, and that file."""
    file = tmp_path / "file"
    later = python(
        "import pathlib, time\n"
        f"file = pathlib.Path({str(file)!r})\n"
        "try:\n    file.write_text('begun')\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    file.write_text('taken away')"
    )
    try:
        deadline = time.monotonic() + WAIT_S
        while not (file.exists() and file.read_text(encoding="utf-8")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield later, file
    finally:
        later.end()


def test_what_it_told_and_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    later = python(
        "import sys, time\n"
        "print('first', flush=True)\ntime.sleep(1)\nprint('wrong', file=sys.stderr, flush=True)\nprint('last')\n"
        "sys.exit(2)"
    )
    try:
        time.sleep(0.5)
        assert capfd.readouterr().out == "", "not before its turn"
        assert later.tell() == 2
        assert capfd.readouterr().out == "first\nwrong\nlast\n"
    finally:
        later.end()


def test_one_that_is_killed_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    later = python("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    try:
        assert later.tell() == EXIT_FAILED
        assert "ended by SIGKILL" in capfd.readouterr().err
    finally:
        later.end()


def test_it_is_ended_with_time_to_take_away_what_is_half_made(begun: tuple[Later, Path]) -> None:
    later, file = begun
    later.end()
    assert file.read_text(encoding="utf-8") == "taken away"
    assert later._process.returncode is not None
