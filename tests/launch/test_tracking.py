"""What a stage tells, going on where a resumed one does: its logs, and curves that run through all stages of a run."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator
from tensorboard.util.tensor_util import make_ndarray

from launch.config import RunConfig
from launch.forgetting_report import write_matrix
from launch.step_log import STEPS_FILE, TIMES_FILE, VALIDATION_FILE, read_steps
from launch.tracking import Tracker
from models.record import RECORD_FILE
from tests.launch.event_files import seconds_between_event_files

# 0: all of a tag, and not a sample of so many.
EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    with seconds_between_event_files():
        yield


def run_config(folder: Path, *names: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": folder,
            "model": {"base": "tiny"},
            "databases": {"one": {"kind": "simulated", "count": 2}},
            "stages": [{"name": name, "databases": ["one"], "steps": 30} for name in names],
        }
    )


def tracked(folder: Path, done_steps: int, losses: dict[int, dict[str, float]]) -> list[dict[str, object]]:
    """Track a stage from `done_steps` on; return what its log holds then."""
    config = run_config(folder, "only")
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


def test_a_validation_that_is_made_again_stands_once(tmp_path: Path) -> None:
    config = run_config(tmp_path, "only")
    (stage,) = config.stages
    tracked(tmp_path, 0, {0: {"one": 0.5}, 10: {"one": 0.4}})
    tracker = Tracker(config, stage, 20, 10, validated=[0])  # the checkpoint of step 10 was saved before
    tracker.validation(10, {"one": 0.4}, 0.4)
    tracker.close()
    assert [entry["step"] for entry in read_steps(config.stage_path(stage) / VALIDATION_FILE)] == [0, 10]


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    (entry,) = tracked(tmp_path, 0, {0: {"one": float("nan"), "two": 0.25}})
    assert entry == {"step": 0, "losses": {"one": None, "two": 0.25}, "mean": None}
    text = (tmp_path / "stages" / "only" / VALIDATION_FILE).read_text(encoding="utf-8")
    assert json.loads(text) == entry


def go_on(config: RunConfig, number: int, first: int, last: int, process: int) -> None:
    """Do steps `first` to `last` of a stage as one process, that validates every 5 steps and is killed or ends then.

    The loss of a step is that of the process, so that what is shown tells who wrote it.
    """
    stage = config.stages[number]
    tracker = Tracker(config, stage, 30, first - 1)
    tracker.begin(f"process: {process}")
    image = np.zeros((2, 2, 3), np.uint8)
    if first == 1:
        tracker.validation(0, {"one": process}, process)
        tracker.images(0, {"a lesion": image})
    for step in range(first, last + 1):
        tracker.step(step, {"train/loss": process, "throughput/samples_per_s": 2.0}, ["a"])
        if step % 5 == 0:
            tracker.validation(step, {"one": process}, process)
            tracker.images(step, {"a lesion": image})
    tracker.close()


def finish(config: RunConfig, number: int, steps: int) -> None:
    """Write the record of a stage's model."""
    folder = config.stage_model(config.stages[number])
    folder.mkdir(parents=True)
    (folder / RECORD_FILE).write_text(json.dumps({"steps": steps}), encoding="utf-8")


def shown(config: RunConfig) -> PluginAccumulator:
    """Return what the reader of `tensorboard` itself shows, for which everything is a tensor."""
    folder = str(config.run / "tensorboard")
    ours, scripts = PluginAccumulator(folder, EVERYTHING).Reload(), EventAccumulator(folder, EVERYTHING).Reload()
    for tag in ours.Tags()["tensors"]:
        steps = [event.step for event in ours.Tensors(tag)]
        assert steps == sorted(set(steps)), f"{tag}: each step once, in order"
    for tag in scripts.Tags()["scalars"]:
        assert {event.step: event.value for event in scripts.Scalars(tag)} == values(ours, tag)
        assert len(scripts.Scalars(tag)) == len(ours.Tensors(tag)), "the other reader, for scripts, agrees"
    return ours


def steps_of(events: PluginAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Tensors(tag)]


def values(events: PluginAccumulator, tag: str) -> dict[int, float]:
    return {event.step: make_ndarray(event.tensor_proto).item() for event in events.Tensors(tag)}


def texts(events: PluginAccumulator, tag: str) -> list[tuple[int, str]]:
    found = events.Tensors(f"{tag}/text_summary")
    return [(event.step, make_ndarray(event.tensor_proto).item().decode()) for event in found]


def test_a_curriculum_that_is_killed_is_one_curve(tmp_path: Path) -> None:
    config = run_config(tmp_path / "run", "first", "second", "third")
    go_on(config, 0, 1, 7, process=1)  # killed before its first checkpoint
    go_on(config, 0, 1, 18, process=2)  # killed 8 steps beyond its checkpoint
    go_on(config, 0, 11, 30, process=3)
    finish(config, 0, 30)
    go_on(config, 1, 1, 8, process=4)  # killed before its first checkpoint
    go_on(config, 1, 1, 9, process=5)  # killed 5 steps beyond it
    go_on(config, 1, 5, 20, process=6)
    finish(config, 1, 10)  # an early stop: the model of step 10 is left, after 20
    go_on(config, 2, 1, 30, process=7)
    finish(config, 2, 30)

    assert all(path.is_file() for path in (tmp_path / "run" / "tensorboard").iterdir()), "one run of TensorBoard"
    events = shown(config)
    by = dict.fromkeys(range(1, 11), 2.0) | dict.fromkeys(range(11, 31), 3.0)
    by |= dict.fromkeys(range(31, 35), 5.0) | dict.fromkeys(range(35, 51), 6.0)
    by |= dict.fromkeys(range(51, 81), 7.0)
    assert values(events, "train/loss") == by
    assert values(events, "validation/loss") == {0: 2.0} | {step: by[step] for step in range(5, 81, 5)}
    assert steps_of(events, "preview/a lesion") == list(range(0, 81, 5))
    assert values(events, "stage") == {step: 1 + (step > 30) + (step > 50) for step in range(1, 81)}
    assert texts(events, "stage") == [(1, "first"), (31, "second"), (51, "third")]
    # What a stage starts from has no point in the curves that the stage before has gone through there.
    assert values(events, "start/validation/loss") == {31: 5.0, 51: 7.0}
    assert steps_of(events, "start/preview/a lesion") == [31, 51]
    configs = [(step, text.split()[2]) for step, text in texts(events, "config")]
    assert configs == [(0, "2"), (11, "3"), (31, "5"), (35, "6"), (51, "7")]


def test_the_forgetting_matrix_stands_at_the_last_step_of_a_stage_and_purges_nothing(tmp_path: Path) -> None:
    config = run_config(tmp_path / "run", "first", "second")
    for number in range(2):
        go_on(config, number, 1, 30, process=number + 1)
        finish(config, number, 30)
        write_matrix(config)
    events = shown(config)
    assert steps_of(events, "forgetting") == [30, 60]
    assert list(values(events, "train/loss")) == list(range(1, 61))


def test_a_stage_with_more_steps_than_it_had_goes_on_in_the_place_of_the_next_one(tmp_path: Path) -> None:
    config = run_config(tmp_path / "run", "first", "second")
    for number, process in ((0, 1), (1, 2)):
        go_on(config, number, 1, 30, process)
        finish(config, number, 30)
    go_on(config, 0, 31, 40, process=3)
    expected = dict.fromkeys(range(1, 31), 1.0) | dict.fromkeys(range(31, 41), 3.0)
    assert values(shown(config), "train/loss") == expected


def test_times_stand_beside_the_steps_which_stay_the_same_to_the_bit(tmp_path: Path) -> None:
    logs = []
    for name in ("straight", "killed"):
        config = run_config(tmp_path / name, "only")
        if name == "killed":
            go_on(config, 0, 1, 12, process=1)
            go_on(config, 0, 11, 30, process=1)
        else:
            go_on(config, 0, 1, 30, process=1)
        folder = config.stage_path(config.stages[0])
        logs.append((folder / STEPS_FILE).read_bytes())
        times = read_steps(folder / TIMES_FILE)
        assert [entry["step"] for entry in times] == list(range(1, 31))
        assert [entry["time"] for entry in times] == sorted(entry["time"] for entry in times)
        assert {entry["samples_per_s"] for entry in times} == {2.0}
    assert logs[0] == logs[1]
