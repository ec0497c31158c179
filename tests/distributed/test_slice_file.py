"""Slice files are what the safetensors library writes and reads, and say when they are damaged."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distributed import slice_file
from distributed.slice_file import SliceFile, write_slices

TENSORS = {
    "000.master": torch.arange(1000, dtype=torch.float32) / 7,
    "000.state1": torch.arange(1000).to(torch.uint8),
    "001.master": (torch.arange(77) / 3).bfloat16(),
    "002.empty": torch.empty(0),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_file, "PART_BYTES", 256)


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "slices.safetensors"
    digest = write_slices(path, TENSORS)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)


def test_a_part_is_read_from_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "slices.safetensors"
    save_file(TENSORS, path)
    file = SliceFile(path)
    assert file.numel("000.master") == 1000
    for key, start, length in (("000.master", 13, 700), ("000.state1", 256, 744), ("001.master", 0, 77)):
        target = torch.empty(length, dtype=TENSORS[key].dtype)
        file.read_into(target, key, start)
        assert torch.equal(target, TENSORS[key][start : start + length])
    wider = torch.empty(10)
    file.read_into(wider, "001.master", 3)
    assert torch.equal(wider, TENSORS["001.master"][3:13].float())


def test_a_file_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "slices.safetensors"
    write_slices(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(OSError, match=r"ends within 001\.master"):
        SliceFile(path).read_into(torch.empty(77), "001.master", 0)


def test_what_lies_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "slices.safetensors").write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        write_slices(tmp_path / "slices.safetensors", TENSORS)
