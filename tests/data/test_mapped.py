"""A mapped array's pages go out of memory, and its content stays."""

from pathlib import Path

import numpy as np
import pytest

from data.mapped import let_go


def resident_file_bytes() -> int:
    """Return the bytes of mapped files, shared memory among them, that this process has in memory."""
    status = Path("/proc/self/smaps_rollup")
    if not status.exists():
        pytest.skip("Linux only")
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if "kB" in line)
    return 1024 * (int(fields["Rss"].split()[0]) - int(fields["Anonymous"].split()[0]))


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_pages_go_and_come_back(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "numbers"
    numbers = np.arange(1 << 22, dtype=np.float32)
    numbers.tofile(path)
    mapped = np.memmap(path, np.float32, mode="r" if mode == "r" else "r+")
    plain = np.asarray(mapped)[10:]
    before = resident_file_bytes()
    assert np.array_equal(plain, numbers[10:])
    if mode == "r+":
        mapped[100:200] = -1
        numbers[100:200] = -1
    assert resident_file_bytes() - before > 0.9 * numbers.nbytes
    let_go(plain)
    # A tenth: other mapped files, such as libraries, come in meanwhile.
    assert resident_file_bytes() - before < 0.1 * numbers.nbytes
    assert np.array_equal(mapped, numbers)
    assert np.array_equal(np.fromfile(path, np.float32), numbers)
