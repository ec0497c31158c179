"""Which checkpoints are found, kept and called the best, and how one takes the place of another."""

import errno
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from distributed.checkpoint import (
    find_checkpoint,
    lowest_checkpoint,
    named_checkpoint,
    newest_position,
    prune,
    publish,
    restore_older,
    sealed,
    slices_name,
    step_folder,
)
from distributed.errors import CheckpointError


def checkpoints_with_losses(root: Path, losses: list[float | None]) -> Path:
    """Write a folder for each step from 1 on, with what `prune` reads of it; return the newest one."""
    for step, loss in enumerate(losses, start=1):
        folder = step_folder(root, step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"position": {"step": step, "validation_loss": loss}}))
    return step_folder(root, len(losses))


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf, None])
@pytest.mark.parametrize("worst_first", [True, False])
def test_the_best_has_the_lowest_loss_that_is_finite(tmp_path: Path, bad: float | None, worst_first: bool) -> None:
    losses = [bad, 0.5, 0.9, 0.7] if worst_first else [0.9, 0.5, bad, 0.7]
    newest = checkpoints_with_losses(tmp_path, losses)
    prune(tmp_path, newest, keep_last=1, keep_best=True)
    assert named_checkpoint(tmp_path, "BEST") == step_folder(tmp_path, 2)
    assert sorted(tmp_path.glob("step-*")) == [step_folder(tmp_path, 2), step_folder(tmp_path, 4)]


def test_where_no_loss_is_finite_none_is_the_best(tmp_path: Path) -> None:
    newest = checkpoints_with_losses(tmp_path, [math.nan, None, math.inf])
    prune(tmp_path, newest, keep_last=2, keep_best=True)
    assert named_checkpoint(tmp_path, "BEST") is None
    assert sorted(tmp_path.glob("step-*")) == [step_folder(tmp_path, 2), newest]


def test_a_damaged_one_takes_no_place_of_the_last_or_the_best_and_goes_with_its_age(tmp_path: Path) -> None:
    newest = checkpoints_with_losses(tmp_path, [0.1, 0.5, 0.9, 0.2, 0.7])
    damaged = {step_folder(tmp_path, step).name for step in (1, 4)}
    prune(tmp_path, newest, keep_last=2, keep_best=True, damaged=damaged)
    assert named_checkpoint(tmp_path, "BEST") == step_folder(tmp_path, 2)
    assert sorted(tmp_path.glob("step-*")) == [step_folder(tmp_path, step) for step in (2, 3, 4, 5)]


@pytest.mark.parametrize("failure", [KeyboardInterrupt("killed"), OSError("Input/output error")])
def test_a_checkpoint_of_the_same_step_stands_until_the_new_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    final = checkpoints_with_losses(tmp_path, [0.5])
    partial = tmp_path / ".step-00000001.partial"
    partial.mkdir()
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path == partial:
            raise failure
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(failure)):
        publish(partial, final, {"position": {"step": 1, "validation_loss": 0.4}})
    monkeypatch.undo()
    if isinstance(failure, OSError):
        assert final.exists(), "it has its name again at once"
    else:
        assert not final.exists(), "a killed process mends nothing: the next start does"
        restore_older(tmp_path)
    assert json.loads((final / "manifest.json").read_text())["position"]["validation_loss"] == 0.5
    publish(partial, final, {"position": {"step": 1, "validation_loss": 0.4}})
    assert json.loads((final / "manifest.json").read_text())["position"]["validation_loss"] == 0.4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", final.name]


def test_latest_names_a_checkpoint_only_once_it_stands(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, final = whole / ".step.partial", step_folder(whole, 4)
    partial.mkdir()
    seen: list[tuple[bool, Path | None]] = []
    rename = Path.rename

    def noted(path: Path, target: Path) -> Path:
        seen.append((final.exists(), named_checkpoint(whole, "LATEST")))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", noted)
    publish(partial, final, {"position": {"step": 4}})
    assert seen == [(False, step_folder(whole, 3)), (True, step_folder(whole, 3))], "its name, and then LATEST's"
    assert named_checkpoint(whole, "LATEST") == final


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder of three whole checkpoints; the losses are 0.3, 0.1 and 0.2."""
    for step, loss in ((1, 0.3), (2, 0.1), (3, 0.2)):
        partial = tmp_path / ".step.partial"
        partial.mkdir()
        files = {}
        for index in range(2):
            name = slices_name(index, 2)
            (partial / name).write_bytes(bytes([step, index]))
            files[name] = hashlib.sha256(bytes([step, index])).hexdigest()
        position = {"step": step, "validation_loss": loss, "validation_losses": {step: loss}}
        publish(partial, step_folder(tmp_path, step), {"format_version": 3, "position": position, "files": files})
    return tmp_path


def found_step(root: Path) -> int:
    found = find_checkpoint(root)
    assert found is not None
    return int(found.position["step"])


def lowest_step(root: Path, last_step: int = 3) -> int:
    found = lowest_checkpoint(root, last_step)
    assert found is not None
    return int(found.position["step"])


@pytest.mark.parametrize("content", ["", "[]", "null", "3", '{"format_version": 3, "files": ["slices"]}', "{}"])
def test_a_manifest_of_nonsense_is_damage(whole: Path, content: str) -> None:
    (step_folder(whole, 3) / "manifest.json").write_text(content)
    found = find_checkpoint(whole)
    assert found is not None
    assert found.position["step"] == 2
    assert found.skipped[0].startswith("step-00000003: ")
    assert found.damaged == {"step-00000003"}


@pytest.mark.parametrize(
    ("was", "now"), [('"step": 3', '"step": 2'), ('"validation_loss": 0.2', '"validation_loss": 0.3')]
)
def test_a_manifest_has_a_hash_too(whole: Path, was: str, now: str) -> None:
    manifest = step_folder(whole, 3) / "manifest.json"
    assert was in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(was, now))
    assert found_step(whole) == 2


@pytest.mark.parametrize("left", [0, 1])
def test_a_set_of_slices_that_is_not_whole_is_damage(whole: Path, left: int) -> None:
    names = [slices_name(index, 2) for index in range(left)]
    partial = whole / ".step.partial"
    partial.mkdir()
    files = {name: hashlib.sha256(b"").hexdigest() for name in names}
    for name in names:
        (partial / name).touch()
    publish(partial, step_folder(whole, 4), {"format_version": 3, "position": {"step": 4}, "files": files})
    found = find_checkpoint(whole)
    assert found is not None
    assert found.skipped == ("step-00000004: manifest.json names no whole set of slices",)


def test_a_file_that_cannot_be_read_is_damage(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = step_folder(whole, 3) / slices_name(1, 2)
    is_opened = Path.open

    def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == bad:
            raise OSError(errno.EIO, "Input/output error")
        return is_opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    found = find_checkpoint(whole)
    assert found is not None
    assert found.skipped == (f"step-00000003: {bad.name} cannot be read (Input/output error)",)


@pytest.mark.parametrize(("version", "manifest"), [(2, {"slices": {}}), (4, sealed({"format_version": 4}))])
def test_what_another_version_wrote_is_not_passed_over(whole: Path, version: int, manifest: dict[str, Any]) -> None:
    file = step_folder(whole, 3) / "manifest.json"
    file.write_text(json.dumps({"format_version": version, **manifest}))
    for look in (find_checkpoint, newest_position):
        message = rf"step-00000003 is of format {version}, this version reads 3: go"
        with pytest.raises(CheckpointError, match=message) as raised:
            look(whole)
        assert type(raised.value) is CheckpointError, "no damage"


def test_a_damaged_version_is_damage(whole: Path) -> None:
    file = step_folder(whole, 3) / "manifest.json"
    file.write_text(file.read_text().replace('"format_version": 3', '"format_version": 7'))
    assert found_step(whole) == 2
    assert newest_position(whole) is None


@pytest.mark.parametrize("content", ["[]", "null", "3", '{"position": 3}', '{"position": {"validation_loss": "low"}}'])
def test_a_manifest_of_nonsense_hinders_no_save(whole: Path, content: str) -> None:
    (step_folder(whole, 1) / "manifest.json").write_text(content)
    prune(whole, step_folder(whole, 3), keep_last=1, keep_best=True)
    assert named_checkpoint(whole, "BEST") == step_folder(whole, 2)
    assert newest_position(whole) == {"step": 3, "validation_loss": 0.2, "validation_losses": {"3": 0.2}}


def test_a_label_of_nonsense_names_nothing(whole: Path) -> None:
    (whole / "LATEST").write_bytes(b"\xff\xfe")
    assert found_step(whole) == 3


def test_the_lowest_is_found_without_best(whole: Path) -> None:
    assert named_checkpoint(whole, "BEST") is None
    assert lowest_step(whole) == 2
    assert lowest_step(whole, last_step=1) == 1
    (step_folder(whole, 2) / slices_name(0, 2)).unlink()
    assert lowest_step(whole) == 3
    assert lowest_checkpoint(whole, last_step=0) is None
    for step in (1, 3):
        (step_folder(whole, step) / slices_name(0, 2)).unlink()
    with pytest.raises(CheckpointError, match=r"was validated is whole \(step-00000002: .*: restore one, or"):
        lowest_checkpoint(whole, last_step=3)
