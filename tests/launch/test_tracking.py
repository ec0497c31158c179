"""validation.jsonl: a line a validation, going on where a resumed stage does."""

import json
from pathlib import Path

from launch.config import RunConfig
from launch.tracking import VALIDATION_FILE, Tracker, read_steps


def tracked(folder: Path, done_steps: int, losses: dict[int, dict[str, float]]) -> list[dict[str, object]]:
    """Track a stage from `done_steps` on; return what its log holds then."""
    config = RunConfig.model_validate(
        {
            "run": folder,
            "model": {"base": "tiny"},
            "databases": {"one": {"kind": "simulated", "count": 2}},
            "stages": [{"name": "only", "databases": ["one"], "steps": 30}],
        }
    )
    (stage,) = config.stages
    tracker = Tracker(config, stage, 20, done_steps)
    for step, by_database in losses.items():
        tracker.validation(step, by_database, by_database["one"])
    tracker.close()
    return read_steps(config.stage_path(stage) / VALIDATION_FILE)


def test_the_validation_log_goes_on_after_the_checkpoint(tmp_path: Path) -> None:
    first = tracked(tmp_path, 0, {0: {"one": 0.5, "two": 0.25}, 10: {"one": 0.4, "two": 0.3}, 20: {"one": 0.3}})
    assert first[0] == {"step": 0, "losses": {"one": 0.5, "two": 0.25}, "mean": 0.5}
    resumed = tracked(tmp_path, 10, {20: {"one": 0.35}, 30: {"one": 0.2}})
    assert resumed == [*first[:2], *({"step": s, "losses": {"one": x}, "mean": x} for s, x in ((20, 0.35), (30, 0.2)))]
    again = tracked(tmp_path, 0, {0: {"one": 0.6}})
    assert [entry["mean"] for entry in again] == [0.6], "killed before its first checkpoint, a stage begins anew"


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    (entry,) = tracked(tmp_path, 0, {0: {"one": float("nan"), "two": 0.25}})
    assert entry == {"step": 0, "losses": {"one": None, "two": 0.25}, "mean": None}
    text = (tmp_path / "stages" / "only" / VALIDATION_FILE).read_text(encoding="utf-8")
    assert json.loads(text) == entry
