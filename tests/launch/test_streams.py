"""A run outlives whoever reads what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

# Says something until it was lost, then ends as a stopped run does; `print` alone would raise BrokenPipeError.
SPEAKER = """
import sys
from pathlib import Path
from launch.failure import end_at_once
from launch.progress import Progress
from launch.streams import outlive_readers
outlive_readers()
print("here", file=sys.{stream}, flush=True)
sys.stdin.read()
progress = Progress("steps", "step", 10)
for step in range(1, 11):
    progress.show(step)
    print("a line", file=sys.{stream}, flush=True)
    progress.say("a message")
print("not flushed", file=sys.{stream})
{end}
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(("end", "code"), [("end_at_once(75)", 75), ("sys.exit(0)", 0)])
def test_a_reader_that_is_gone_changes_no_exit_code(stream: str, end: str, code: int) -> None:
    speaker = subprocess.Popen(
        [sys.executable, "-c", SPEAKER.format(stream=stream, end=end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if stream == "stdout" else None,
        stderr=subprocess.PIPE if stream == "stderr" else None,
    )
    reader = getattr(speaker, stream)
    assert reader.readline() == b"here\n"
    reader.close()
    assert speaker.stdin is not None
    speaker.stdin.close()
    assert speaker.wait(timeout=60) == code


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    said = "import sys; from launch.streams import outlive_readers; outlive_readers(); "
    said += "print('lost', file=sys.stderr, flush=True); sys.exit(3)"
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", said], stderr=full, check=False).returncode == 3
