"""Signals reach every rank, and of several failures the cause is told first."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from distributed.stop_request import STOP_SIGNALS, heard_signals
from tests.launch.started import started

PROGRAM = [sys.executable, "-m", "tests.launch.signal_scenarios"]


@pytest.fixture
def closed_terminals_are_heard() -> Iterator[None]:
    """Let programs hear a HUP also where nohup started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("closed_terminals_are_heard")
@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_reaches_every_rank_and_their_75_comes_back(number: signal.Signals) -> None:
    with started([*PROGRAM, "wait", "2"]) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["about to listen\n"] * 2
        process.send_signal(number)
        assert process.wait(timeout=60) == 75


@pytest.mark.slow
def test_the_traceback_of_the_rank_that_failed_stands_on_top_and_what_followed_is_not_told() -> None:
    result = subprocess.run([*PROGRAM, "raise", "3"], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    (told,) = [line for line in result.stderr.splitlines() if line.startswith("sonoshard: ")]
    assert told == result.stderr.splitlines()[-1] == "sonoshard: rank 1 failed first: ArithmeticError: this rank alone"
    assert result.stderr.count("Traceback") == 1
    assert 'raise ArithmeticError("this rank\\nalone")' in result.stderr.splitlines()[-4]


@pytest.mark.slow
def test_a_rank_that_fails_of_something_else_is_told_below_the_first() -> None:
    result = subprocess.run([*PROGRAM, "both", "2"], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    *_, first, second = result.stderr.splitlines()
    assert first == "sonoshard: rank 1 failed first: ArithmeticError: this rank alone"
    assert second == "sonoshard: rank 0 failed too: LookupError: and this one"


@pytest.mark.slow
def test_a_mistake_that_one_rank_alone_sees_is_told_in_one_line() -> None:
    result = subprocess.run([*PROGRAM, "mistake", "3"], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "sonoshard: rank 1: seen by this rank alone"
    assert "Traceback" not in result.stderr


def test_under_nohup_a_closed_terminal_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(STOP_SIGNALS) - {signal.SIGHUP} <= set(heard_signals())
    monkeypatch.setattr("signal.getsignal", lambda number: signal.SIG_IGN if number == signal.SIGHUP else None)
    assert signal.SIGHUP not in heard_signals()


@pytest.mark.slow
def test_a_rank_that_is_killed_is_the_cause() -> None:
    result = subprocess.run([*PROGRAM, "kill", "3"], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "sonoshard: rank 1 failed first: ended by SIGKILL"
    assert "Traceback" not in result.stderr
