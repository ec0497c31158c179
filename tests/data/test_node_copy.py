"""A copy on a node's own disk is made once, whole, by one process, and only of shards that are whole."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from data import node_copy
from data.errors import DataError
from data.node_copy import copied_to_node
from data.shards import ShardSet


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.fixture
def source(busi_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(busi_shards, tmp_path / "shards"))


def test_the_copy_is_the_same_and_made_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "of others").write_text("stays")
    copy = copied_to_node(source, tmp_path / "disk")
    assert copy.parent == tmp_path / "disk"
    assert content(copy) == content(source)
    entries = ShardSet.open(copy).entries("busi", "train")
    assert list(entries) == list(ShardSet.open(source).entries("busi", "train"))
    monkeypatch.setattr(node_copy, "_copy", None)
    assert copied_to_node(source, tmp_path / "disk") == copy
    assert (tmp_path / "disk" / "of others").read_text() == "stays"


@pytest.mark.parametrize("num_copied", range(0, 12, 3))
def test_an_interrupted_copy_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_copied: int
) -> None:
    copied: list[Path] = []
    real_copy = node_copy._copy

    def copy_or_stop(from_: Path, to: Path, sha256: str | None) -> None:
        if len(copied) == num_copied:
            raise KeyboardInterrupt
        copied.append(to)
        real_copy(from_, to, sha256)

    monkeypatch.setattr(node_copy, "_copy", copy_or_stop)
    with pytest.raises(KeyboardInterrupt):
        copied_to_node(source, tmp_path / "disk")
    num_copied = 100
    assert content(copied_to_node(source, tmp_path / "disk")) == content(source)
    assert len(copied) == len(set(copied)) == 12, "two files of text, and two of each of the five shards"


def test_processes_of_a_node_share_a_copy(source: Path, tmp_path: Path) -> None:
    """Each says which files it copied: together all, none twice."""
    code = """
import sys
from pathlib import Path
from data import node_copy
real_copy = node_copy._copy
def copy(source, target, sha256):
    print(target, flush=True)
    real_copy(source, target, sha256)
node_copy._copy = copy
node_copy.copied_to_node(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "disk")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(lines) == len(set(lines)) == 12


@pytest.mark.parametrize("name", ["busi/train-000001.tar", "busi/train-000001.parquet", "text.npy", "text.parquet"])
def test_a_damaged_file_is_named_and_not_copied(source: Path, tmp_path: Path, name: str) -> None:
    damaged = bytearray((source / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (source / name).write_bytes(damaged)
    with pytest.raises(DataError, match=f"^{re.escape(str(source / name))} is damaged: remove it and run"):
        copied_to_node(source, tmp_path / "disk")
    assert not list((tmp_path / "disk").rglob(name))
    with pytest.raises(DataError, match="is missing"):
        ShardSet.open(next((tmp_path / "disk").iterdir()))


def test_a_disk_that_is_too_small(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=10_000))
    with pytest.raises(DataError) as refused:
        copied_to_node(source, tmp_path / "disk")
    total = sum(len(file) for name, file in content(source).items() if name != "fingerprint.json")
    assert str(refused.value) == (
        f"{tmp_path}/disk has 0.0 GB free, the shards in {source} need {total / 1e9:.1f} GB: give loader.copy_to a"
        " larger disk, or null to read them where they are"
    )
    assert [path.name for path in (tmp_path / "disk").glob("*/*")] == [".copy.lock"]
