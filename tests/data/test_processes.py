"""Processes on all cores end with the one that began them, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.processes import processes_on_all_cores

# Begins them, tells their numbers, and works on for longer than any test.
PROGRAM = """
import os, time
from data.processes import processes_on_all_cores
with processes_on_all_cores() as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""
WAIT_S = 30


def is_running(pid: int) -> bool:
    """Return whether a process is there, and not only its exit code."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_they_end_when_their_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S
    while is_running(worker):
        assert time.monotonic() < deadline, f"process {worker} runs on"
        time.sleep(0.1)


def test_each_computes_on_one_thread() -> None:
    with processes_on_all_cores() as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"


def test_what_is_not_begun_is_dropped_when_the_caller_fails(tmp_path: Path) -> None:
    num_tasks = 100 * (os.cpu_count() or 1)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, num_tasks)
    assert len(list(tmp_path.iterdir())) < num_tasks / 2


def interrupted(folder: Path, num_tasks: int) -> None:
    with processes_on_all_cores() as pool:
        for number in range(num_tasks):
            pool.submit(touch_late, folder / str(number))
        raise KeyboardInterrupt


def touch_late(path: Path) -> None:
    time.sleep(0.2)
    path.touch()
