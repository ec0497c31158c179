"""What the writer does when something fails, and when the disk is slower than training: one rank, no network."""

import json
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distributed import checkpoint_writer
from distributed.checkpoint import find_checkpoint, named_checkpoint, step_folder
from distributed.checkpoint_writer import CheckpointWriter
from distributed.config import CheckpointConfig
from distributed.layout import FlatGroup, whole_layout
from distributed.rank import Rank
from distributed.slice_file import write_slices

AVERAGES = {"ema@0.1": [torch.ones(512)]}


@pytest.fixture(autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def writer(root: Path, *, is_async: bool = False) -> CheckpointWriter:
    """Return the writer of an engine that holds 512 weights."""
    parameter = torch.nn.Parameter(torch.ones(512))
    group: dict[str, Any] = {"name": "matrices", "params": [parameter], "param_names": ["weight"], "optim_bits": 8}
    moments = {"state1": torch.zeros(512, dtype=torch.uint8), "absmax1": torch.zeros(2)}
    engine: Any = SimpleNamespace(
        rank=Rank(0, 1, 0),
        device=torch.device("cpu"),
        slice_index=0,
        zero_stage=2,
        num_steps=1,
        groups=[FlatGroup(whole_layout(group, 1), torch.ones(512), moments, {})],
    )
    return CheckpointWriter(root, engine, CheckpointConfig(is_async=is_async, keep_last=9))


def test_the_manifest_says_what_the_files_hold(tmp_path: Path) -> None:
    writer(tmp_path).save(AVERAGES, {"step": 1})
    manifest = json.loads((step_folder(tmp_path, 1) / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["zero_stage"]) == (1, 2)
    others = {name: version(name) for name in ("deepspeed", "bitsandbytes")}
    assert manifest["versions"] == {"torch": torch.__version__, **others}
    assert manifest["groups"][0]["dtypes"] == {"master": "F32", "state1": "U8", "absmax1": "F32", "ema@0.1": "F32"}


@pytest.mark.parametrize("is_async", [False, True])
def test_any_failure_of_the_writing_is_told_and_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    failing = writer(tmp_path, is_async=is_async)
    failing.save(AVERAGES, {"step": 1})

    def break_(*_: Any) -> str:
        raise KeyError("no such dtype")

    monkeypatch.setattr(checkpoint_writer, "write_slices", break_)
    if is_async:
        failing.save(AVERAGES, {"step": 2})
    with pytest.raises(RuntimeError, match=r"step-00000002: KeyError: 'no such dtype'; earlier ones beside") as told:
        failing.finish() if is_async else failing.save(AVERAGES, {"step": 2})
    assert isinstance(told.value.__cause__, KeyError), "its traceback is the one that helps"
    assert failing.newest_step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-00000001"]


def test_a_file_without_a_hash_is_never_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "write_slices", lambda *_: None)
    with pytest.raises(RuntimeError, match="its slices were not written to the end"):
        writer(tmp_path).save(AVERAGES, {"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_what_fails_after_a_checkpoint_is_named_does_not_call_it_unwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "prune", fill_the_disk)
    full = writer(tmp_path)
    with pytest.raises(RuntimeError, match=r"step-00000001 is whole, but BEST beside it could not .* No space left"):
        full.save(AVERAGES, {"step": 1})
    assert full.newest_step == 1
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.position["step"] == 1


def test_a_second_save_waits_for_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, waits = threading.Event(), threading.Event()

    def write_when_allowed(*arguments: Any) -> str:
        assert may_write.wait(60)
        return write_slices(*arguments)

    class WaitedFor(threading.Thread):
        """Says when another thread waits for its end."""

        def join(self, timeout: float | None = None) -> None:
            waits.set()
            super().join(timeout)

    monkeypatch.setattr(checkpoint_writer, "write_slices", write_when_allowed)
    monkeypatch.setattr(threading, "Thread", WaitedFor)
    slow = writer(tmp_path, is_async=True)
    slow.save(AVERAGES, {"step": 1})
    slow.poll()
    assert named_checkpoint(tmp_path, "LATEST") is None, "it is still being written"
    assert slow.newest_step is None
    # Only once the second save waits may the first write: without the wait it would time out, as training went on.
    release = threading.Thread(target=lambda: may_write.set() if waits.wait(60) else None)
    release.start()
    slow.save(AVERAGES, {"step": 2})
    assert waits.is_set()
    assert slow.newest_step == 1
    assert named_checkpoint(tmp_path, "LATEST") == step_folder(tmp_path, 1)
    release.join()
    slow.finish()
    assert named_checkpoint(tmp_path, "LATEST") == step_folder(tmp_path, 2)
