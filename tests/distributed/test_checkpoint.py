"""Which checkpoints are kept, which is called the best, and how one takes the place of another."""

import json
import math
from pathlib import Path

import pytest

from distributed.checkpoint import named_checkpoint, prune, publish, restore_older, step_folder


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


def test_a_checkpoint_of_the_same_step_stands_until_the_new_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = checkpoints_with_losses(tmp_path, [0.5])
    partial = tmp_path / ".step-00000001.partial"
    partial.mkdir()
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path == partial:
            raise OSError("killed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(OSError, match="killed"):
        publish(partial, final, {"position": {"step": 1, "validation_loss": 0.4}})
    assert not final.exists()
    monkeypatch.undo()
    restore_older(tmp_path)
    assert json.loads((final / "manifest.json").read_text())["position"]["validation_loss"] == 0.5
    publish(partial, final, {"position": {"step": 1, "validation_loss": 0.4}})
    assert json.loads((final / "manifest.json").read_text())["position"]["validation_loss"] == 0.4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", final.name]
