"""The forgetting matrix: its averages by hand-made numbers, its file, its table, its picture."""

import json
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.config import RunConfig
from launch.forgetting import ForgettingMatrix, MatrixRow, read_matrix
from launch.forgetting_report import MATRIX_FILE, PICTURE_FILE, print_matrix, tell_matrix, write_matrix
from launch.heat_map import BOTTOM, CELL_HEIGHT, CELL_WIDTH, DPI, heat_map
from launch.step_log import VALIDATION_FILE


def row(name: str, start: str | None, trained: str, losses: str, *, replay: str = "", kind: str = "diffusion") -> Any:
    """Return a row; `losses` are those of a, b, c and d, a dash where there is none."""
    known = {database: float(loss) for database, loss in zip("abcd", losses.split(), strict=False) if loss != "-"}
    own, replayed = tuple(trained), tuple(replay)
    return MatrixRow(
        name=name, kind=kind, starts=(start,) if start else (), databases=own, replay=replayed, losses=known
    )


def matrix(*rows: MatrixRow) -> ForgettingMatrix:
    names = [name for name in "abcd" if any(name in row.losses for row in rows)]
    return ForgettingMatrix(databases=tuple(names), rows=rows)


BASE = row("base", None, "", "1.0 2.0 4.0")
LINE = (
    BASE,
    row("one", "base", "a", "0.5 1.8 4.4"),
    row("two", "one", "b", "0.4 1.0 3.0"),
    row("three", "two", "c", "0.6 1.5 2.0"),
)


def test_a_chain_by_hand() -> None:
    (chain,) = matrix(*LINE).chains
    assert chain.stages == ("one", "two", "three")
    # a was lowest after `two`, which was not trained on it: 0.4, now 0.6. b: 1.0, now 1.5. c is the last stage's own.
    assert chain.forgetting is not None
    assert chain.forgetting.absolute == pytest.approx((0.2 + 0.5) / 2)
    assert chain.forgetting.relative == pytest.approx((0.5 + 0.5) / 2)
    assert list(chain.forgetting.databases) == ["a", "b"]
    # b before `two` was 1.8, of 2.0; c before `three` was 3.0, of 4.0. a is the first stage's.
    assert chain.forward_transfer is not None
    assert chain.forward_transfer.absolute == pytest.approx((0.2 + 1.0) / 2)
    assert chain.forward_transfer.relative == pytest.approx((0.1 + 0.25) / 2)
    assert list(chain.forward_transfer.databases) == ["b", "c"]


def test_one_stage_forgets_nothing_and_its_base_is_no_training() -> None:
    (chain,) = matrix(*LINE[:2]).chains
    assert (chain.forgetting, chain.forward_transfer) == (None, None)
    # The base was better on b than the stage that trained on it first: what it could is not counted as learnt.
    rows = (BASE, row("one", "base", "b", "1 2.5 4"), row("two", "one", "a", "1 3.0 4"))
    (chain,) = matrix(*rows).chains
    assert chain.forgetting is not None
    assert chain.forgetting.absolute == pytest.approx(0.5)


def test_replay_counts_as_training_and_what_is_replayed_last_may_still_be_forgotten() -> None:
    rows = (*LINE[:3], row("three", "two", "c", "0.3 1.5 2.0", replay="ab"))
    (chain,) = matrix(*rows).chains
    assert chain.forgetting is not None
    changes = {name: change.absolute for name, change in chain.forgetting.databases.items()}
    assert changes == pytest.approx({"a": -0.1, "b": 0.5}), "a better than ever is less than not forgotten"
    # d was first seen by replay; a stage later it is an earlier database.
    base, one = row("base", None, "", "1 2 4 8"), row("one", "base", "a", "1 2 4 6")
    rows = (base, one, row("two", "one", "b", "1 1 4 5", replay="d"), row("three", "two", "c", "1 1 2 7"))
    (chain,) = matrix(*rows).chains
    assert chain.forgetting is not None
    assert chain.forward_transfer is not None
    assert chain.forgetting.databases["d"].absolute == pytest.approx(2)
    assert chain.forward_transfer.databases["d"].absolute == pytest.approx(2)


def test_a_database_that_the_last_stage_is_for_again_is_not_an_earlier_one() -> None:
    (chain,) = matrix(*LINE[:3], row("again", "two", "a", "0.1 1.5 3.0")).chains
    assert chain.forgetting is not None
    assert list(chain.forgetting.databases) == ["b"]


def test_branches_are_chains_of_their_own() -> None:
    rows = (
        *LINE,
        row("branch", "one", "c", "0.75 1.9 1.0"),
        row("alone", "base", "b", "0.9 1.1 4.0"),
        row("after", "branch", "b", "1.0 1.2 3.0"),
    )
    chains = {chain.stages: chain for chain in matrix(*rows).chains}
    assert list(chains) == [("one", "two", "three"), ("alone",), ("one", "branch", "after")]
    after = chains["one", "branch", "after"]
    assert after.forgetting is not None
    assert {name: change.absolute for name, change in after.forgetting.databases.items()} == {"a": 0.5, "c": 2.0}
    assert after.forward_transfer is not None
    # c before `branch` was 4.4: worse than the base's 4.0. b before `after` was 1.9.
    transfers = {name: change.absolute for name, change in after.forward_transfer.databases.items()}
    assert transfers == pytest.approx({"b": 0.1, "c": -0.4})
    assert (chains["alone",].forgetting, chains["alone",].forward_transfer) == (None, None)


def test_what_is_not_known_is_left_out() -> None:
    rows = (
        row("base", None, "", "1.0 -   4.0"),
        row("one", "base", "a", "-   1.8 4.4"),
        row("two", "one", "b", "0.4 1.0 -"),
        row("three", "two", "c", "0.6 -   2.0"),
    )
    (chain,) = matrix(*rows).chains
    assert chain.forgetting is not None
    assert {name: change.absolute for name, change in chain.forgetting.databases.items()} == pytest.approx({"a": 0.2})
    assert chain.forward_transfer is None
    nothing = matrix(*(row(name, start, "a", "") for name, start in (("base", None), ("one", "base"))))
    assert [chain.forgetting for chain in nothing.chains] == [None]


def test_controlnet_stages_are_shown_but_not_counted() -> None:
    masks = row("masks", "three", "a", "0.1 0.1 0.1", kind="controlnet")
    between = row("between", "two", "b", "0.1 0.1 0.1", kind="controlnet")
    three = row("three", "between", "c", "0.6 1.5 2.0")
    (chain,) = matrix(*LINE[:3], between, three, masks).chains
    assert chain == matrix(*LINE).chains[0]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of four stages, of which `unfinished` is not: the others' logs and records are there."""
    stages = [
        {"name": "one", "databases": ["a"], "steps": 20},
        {"name": "two", "databases": ["b"], "replay": {"a": 0.2}, "steps": 10},
        {"name": "unfinished", "databases": ["b"], "steps": 10, "start": "one"},
        {"name": "alone", "databases": ["b"], "steps": 10, "start": "base"},
    ]
    config = RunConfig.model_validate(
        {
            "run": tmp_path,
            "model": {"base": "tiny"},
            "databases": {name: {"kind": "simulated", "count": 2} for name in ("a", "b", "no-validation")},
            "stages": stages,
        }
    )
    write_log(config, "one", {0: (1.0, 2.0), 10: (0.7, 2.2), 20: (0.5, 1.9)})
    write_log(config, "two", {0: (0.5, 1.9), 10: (0.6, 1.0)})
    write_log(config, "unfinished", {0: (0.5, 1.9)}, is_finished=False)
    write_log(config, "alone", {0: (1.0, 2.0), 10: (None, 1.5)})
    return config


def write_log(
    config: RunConfig, name: str, losses: dict[int, tuple[float | None, float]], *, is_finished: bool = True
) -> None:
    stage = next(stage for stage in config.stages if stage.name == name)
    config.stage_model(stage).mkdir(parents=True)
    entries = [{"step": step, "losses": {"a": a, "b": b}, "mean": None} for step, (a, b) in losses.items()]
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (config.stage_path(stage) / VALIDATION_FILE).write_text(text, encoding="utf-8")
    if is_finished:
        record = json.dumps({"steps": stage.steps})
        (config.stage_model(stage) / "sonoshard.json").write_text(record, encoding="utf-8")


def test_reading_a_run(config: RunConfig) -> None:
    found = read_matrix(config)
    assert found.databases == ("a", "b")
    assert [(row.name, row.starts, row.losses) for row in found.rows] == [
        ("base", (), {"a": 1.0, "b": 2.0}),
        ("one", ("base",), {"a": 0.5, "b": 1.9}),
        ("two", ("one",), {"a": 0.6, "b": 1.0}),
        ("alone", ("base",), {"b": 1.5}),
    ]
    assert found.rows[2].replay == ("a",)
    assert found.change(found.rows[2], "b") == pytest.approx(-0.5)
    assert found.change(found.rows[3], "a") is None


def test_the_kind_of_a_stage_is_read(config: RunConfig) -> None:
    one, two, *others = config.stages
    masks = two.model_copy(update={"kind": "controlnet"})
    found = read_matrix(config.model_copy(update={"stages": [one, masks, *others]}))
    assert [row.kind for row in found.rows] == ["diffusion", "diffusion", "controlnet", "diffusion"]
    assert [chain.stages for chain in found.chains] == [("one",), ("alone",)]


def test_a_run_of_before_there_were_logs_has_rows_without_losses(config: RunConfig) -> None:
    for stage in config.stages:
        (config.stage_path(stage) / VALIDATION_FILE).unlink()
    found = read_matrix(config)
    assert found.databases == ()
    assert [row.losses for row in found.rows] == [{}] * 4
    write_matrix(config)
    assert not (config.run / PICTURE_FILE).exists()


def test_json_comes_back(config: RunConfig) -> None:
    found = read_matrix(config)
    assert ForgettingMatrix.from_json(found.to_json()) == found
    content = json.loads(found.to_json())
    assert [chain["stages"] for chain in content["chains"]] == [["one", "two"], ["alone"]]
    assert content["chains"][0]["forgetting"]["databases"]["a"]["absolute"] == pytest.approx(0.1)
    assert content["chains"][1]["forgetting"] is None


def test_file_picture_and_tensorboard(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    tell_matrix(config)
    assert ForgettingMatrix.from_json((config.run / MATRIX_FILE).read_text(encoding="utf-8")) == read_matrix(config)
    image = heat_map(read_matrix(config))
    np.testing.assert_array_equal(np.asarray(Image.open(config.run / PICTURE_FILE)), image)
    assert "average forgetting" in capsys.readouterr().out
    folder = config.run / "tensorboard"
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.width) for event in events.Images("forgetting")] == [(40, image.shape[1])]
    tell_matrix(config)
    assert "average forgetting" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 1, "what lies there already is not written again"


def test_one_stage_and_one_database_is_a_file_only(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    only = config.model_copy(update={"stages": config.stages[:1]})
    path = config.stage_path(config.stages[0]) / VALIDATION_FILE
    path.write_text('{"step": 0, "losses": {"a": 1.0}}\n{"step": 20, "losses": {"a": 0.5}}\n', encoding="utf-8")
    tell_matrix(only)
    assert [row.losses for row in read_matrix(only).rows] == [{"a": 1.0}, {"a": 0.5}]
    assert {path.name for path in config.run.iterdir()} == {"stages", MATRIX_FILE}
    assert capsys.readouterr().out == ""


def printed(found: ForgettingMatrix, width: int = 80) -> str:
    console = Console(width=width, file=StringIO())
    print_matrix(found, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_merge_goes_on_from_all_its_parts() -> None:
    parts = [row("a", "base", "a", "0.5"), row("b", "base", "b", "- 0.6"), row("c", "base", "c", "")]
    last = MatrixRow(name="last", starts=("a", "b"), databases=("c",), losses={"a": 0.8, "b": 0.6})
    found = matrix(row("base", None, "", "1 1 1"), *parts, last)
    assert [chain.stages for chain in found.chains] == [("c",), ("a", "b", "last")]
    forgetting = found.chains[1].forgetting
    assert forgetting is not None
    assert {name: change.absolute for name, change in forgetting.databases.items()} == pytest.approx(
        {"a": 0.3, "b": 0.0}
    )
    assert found.notes(last) == ["from a + b"]


def test_the_table_of_four_databases_and_six_stages_fits() -> None:
    names = ("busi", "fetal-planes", "a-database-of-a-long-name", "d")
    losses = dict(zip(names, (0.1234, 0.2, 0.3, 0.4), strict=True))
    rows = [MatrixRow(name="base", losses={name: 2 * loss for name, loss in losses.items()})]
    for number in range(6):
        last = rows[-1].name
        replay = names[1:2] if number == 5 else ()
        rows.append(
            MatrixRow(name=f"stage-{number}", starts=(last,), databases=names[:1], replay=replay, losses=losses)
        )
    text = printed(ForgettingMatrix(databases=names, rows=tuple(rows)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if line.startswith("stage-5")]
    assert line.split() == ["stage-5", "0.1234*", "-50.0%", "0.2000~", "-50.0%", "0.3000", "-50.0%", "0.4000", "-50.0%"]
    assert len([line for line in lines if "0.1234" in line]) == 6


def test_the_table_tells_starts_kinds_and_averages() -> None:
    found = matrix(*LINE, row("masks", "one", "a", "- 1.0 4.0", kind="controlnet"))
    text = printed(found)
    assert "masks         -                1.0000  -50.0%   4.0000  +0.0%" in text
    assert text.count("\n from one") == 1, "only where the order does not tell it"
    assert "\n controlnet" in text
    assert "one > two > three: average forgetting +50.0% (+0.3500) on a, b\n" in text
    assert "one > two > three: forward transfer +17.5% (+0.6000) on b, c\n" in text
    assert "forgetting" not in printed(matrix(*LINE[:2]))
    narrow = printed(found, width=50)
    assert max(map(len, narrow.splitlines())) <= 50
    assert narrow.count("\nbase ") == 2, "three databases do not fit beside one another"


def test_the_picture_has_a_cell_for_each_number_and_shows_it() -> None:
    image = heat_map(matrix(*LINE))
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    grown = heat_map(matrix(*LINE, row("four", "three", "a", "0.5 1.5 2.0")))
    # To the pixel that a size in inches is rounded to.
    assert grown.shape[0] - image.shape[0] == pytest.approx(DPI * CELL_HEIGHT, abs=1)
    wider = [row.model_copy(update={"losses": {**row.losses, "d": 3.0}}) for row in LINE]
    assert heat_map(matrix(*wider)).shape[1] - image.shape[1] == pytest.approx(DPI * CELL_WIDTH, abs=1)
    np.testing.assert_array_equal(heat_map(matrix(*LINE)), image)
    for other in (
        row("three", "two", "c", "0.6 1.5 2.1"),
        row("three", "two", "c", "0.6 -   2.0"),
        row("three", "two", "ac", "0.6 1.5 2.0"),
        row("three", "two", "c", "0.6 1.5 2.0", replay="a"),
    ):
        assert not np.array_equal(heat_map(matrix(*LINE[:3], other)), image)


def test_the_colours_are_blue_below_the_base_and_red_above() -> None:
    base = row("base", None, "", "1.0 1.0 1.0")
    image = heat_map(matrix(base, row("one", "base", "", "0.1 1.0 9.0"))).astype(int)
    below = image.shape[0] - round(DPI * (BOTTOM + CELL_HEIGHT / 8))  # within the last row's cells, below their figures
    pixels = image[below]
    red, blue = pixels[:, 0] - pixels[:, 2] > 60, pixels[:, 2] - pixels[:, 0] > 60
    cell = DPI * CELL_WIDTH
    assert blue.sum() == pytest.approx(cell, rel=0.05)
    assert red.sum() == pytest.approx(cell, rel=0.05)
    assert np.flatnonzero(blue).max() < np.flatnonzero(red).min()


def test_matplotlibs_own_settings_are_left_alone() -> None:
    import matplotlib

    with patch.dict(matplotlib.rcParams, {"font.size": 30.0, "lines.linewidth": 9.0}):
        image = heat_map(matrix(*LINE))
        assert matplotlib.rcParams["font.size"] == 30.0
    np.testing.assert_array_equal(image, heat_map(matrix(*LINE)))
