"""Debian packages that tests need, installed where root may."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

INSTALL = ["apt-get", "install", "--yes", "--no-install-recommends"]
# apt-get gives up where another one is at work, and tests run in several processes.
LOCK = Path(tempfile.gettempdir()) / "sonoshard-tests-apt.lock"


def install(packages: Sequence[str]) -> None:
    """Install packages where there is apt-get, one process after another.

    Raises: RuntimeError with apt-get's last words.
    """
    if not shutil.which("apt-get"):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}

    def apt(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = apt([*INSTALL, *packages])
        if outcome.returncode != 0:  # the package lists are too old, or there are none
            apt(["apt-get", "update"])
            outcome = apt([*INSTALL, *packages])
    if outcome.returncode != 0:
        raise RuntimeError(f"apt-get could not install {' '.join(packages)}:\n{outcome.stderr[-2000:]}")
