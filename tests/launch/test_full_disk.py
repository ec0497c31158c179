"""A disk that is really full: the checkpoint before stays whole, and the run goes on from it to the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

UNSHARE = ("unshare", "--mount")
CODE = "import sys; from launch.spawn import run_ranks; sys.exit(run_ranks(sys.argv[1:], 1))"


def may_mount() -> bool:
    """Return whether this process may have file systems of its own."""
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_mount() and not os.environ.get("CI"), reason="needs root on Linux, to mount a small disk")
def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on(prepared: Path, tmp_path: Path) -> None:
    program = ["-m", "tests.launch.full_disk", str(prepared), str(tmp_path)]
    command = [*UNSHARE, sys.executable, "-c", CODE, *program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == [], "the small disk was this process's own"
