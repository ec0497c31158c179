"""The realism of a run's stages: what is drawn, what is not drawn again, the file, the table, the command."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from evaluation import stage_realism as module
from evaluation.realism import Realism
from evaluation.realism_report import print_realism
from evaluation.stage_realism import REALISM_FILE, Cell, RealismMatrix, RealismRow, stage_realism
from evaluation.ultrasound_statistics import STATISTICS
from launch.cli import app
from launch.config import RunConfig, load_config
from launch.prepare import prepare_databases
from models.sampling import SamplingConfig
from models.saving import save_pipeline
from models.stable_diffusion import load_unet
from tests.tiny_random_model import write_tiny_random_model

CONFIG = """\
run: {folder}/run
model: {{base: {base}/model}}
databases:
  breast: {{kind: simulated, preset: breast, size: 64, count: 40}}
  cardiac: {{kind: simulated, preset: cardiac, size: 64, count: 40}}
  few: {{kind: simulated, preset: fetal, size: 64, count: 6}}
prepare: {{validation_fraction: 0.2, test_fraction: 0.2}}
preview: {{sampling: {{steps: 1, guidance: 1}}}}
stages:
  - {{name: one, databases: [breast], steps: 20}}
  - {{name: masks, kind: controlnet, databases: [breast], steps: 20}}
  - {{name: two, databases: [cardiac], replay: {{breast: 0.2}}, steps: 10, start: one}}
  - {{name: unfinished, databases: [breast], steps: 10}}
"""
pytestmark = pytest.mark.filterwarnings("ignore:few is left out")


def finish(config: RunConfig, name: str, **facts: Any) -> None:
    """Leave the model of a stage as if it had been trained."""
    stage = next(stage for stage in config.stages if stage.name == name)
    unet = load_unet(config.model, torch.float32)
    generator = torch.Generator().manual_seed(config.stages.index(stage))
    weights = {
        key: value.detach() + 0.05 * torch.randn(value.shape, generator=generator)
        for key, value in unet.state_dict().items()
    }
    config.stage_path(stage).mkdir(parents=True, exist_ok=True)
    save_pipeline(config.model, weights, config.stage_model(stage), {"steps": stage.steps, **facts})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a prepared run, with the models of two diffusion stages and a record of a ControlNet's."""
    folder = tmp_path_factory.mktemp("realism")
    write_tiny_random_model(folder / "model")
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, base=folder), encoding="utf-8")
    config = load_config(folder / "config.yaml")
    prepare_databases(config)
    finish(config, "one")
    finish(config, "two")
    masks = config.run / "stages" / "masks" / "model"
    masks.mkdir(parents=True)
    (masks / "sonoshard.json").write_text('{"steps": 20}', encoding="utf-8")
    return folder


@pytest.fixture
def path(prepared: Path, tmp_path: Path) -> Path:
    """The configuration of a copy of `prepared`."""
    shutil.copytree(prepared / "run", tmp_path / "run")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, base=prepared), encoding="utf-8")
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `sample` was asked for, call by call."""
    calls: list[dict[str, Any]] = []
    real_sample: Callable[..., Any] = vars(module)["sample"]

    def counted(pipeline: Any, prompts: list[str], seeds: range, settings: SamplingConfig, **size: int) -> Any:
        calls.append({"prompts": prompts, "seeds": list(seeds), "steps": settings.steps, **size})
        return real_sample(pipeline, prompts, seeds, settings, **size)

    monkeypatch.setattr(module, "sample", counted)
    return calls


def quiet(_: str) -> None:
    pass


def test_what_is_drawn_and_what_is_not_drawn_again(path: Path, drawn: list[dict[str, Any]]) -> None:
    config = load_config(path)
    with pytest.warns(UserWarning, match="few is left out: needed 4 held-out patients"):
        found = stage_realism(config, 3, quiet)
    assert found.databases == ("breast", "cardiac")
    assert [row.name for row in found.rows] == ["base", "one", "two"]
    assert [row.starts for row in found.rows] == [(), ("base",), ("one",)]
    assert len(drawn) == 6
    assert all(call["seeds"] == [0, 1, 2] and call["steps"] == 1 and call["height"] == 64 for call in drawn)
    assert all("breast" in prompt for call in drawn[::2] for prompt in call["prompts"])
    distances = [cell.distance for row in found.rows for cell in row.realism.values()]
    assert len(set(distances)) == 6, "every model draws something else"
    real = [of.distance for of in found.real.values()]
    assert max(real) < min(distances), "random weights draw nothing like it"
    file = config.run / REALISM_FILE
    assert RealismMatrix.model_validate_json(file.read_text(encoding="utf-8")) == found

    drawn.clear()
    assert stage_realism(config, 3, quiet) == found
    assert drawn == []
    # One stage was trained on for longer: it is drawn anew, the others are not.
    finish(config, "one", steps=30)
    again = stage_realism(config, 3, quiet)
    assert len(drawn) == 2
    assert again.rows[0] == found.rows[0]
    assert again.rows[1].realism["breast"].key != found.rows[1].realism["breast"].key


@pytest.mark.parametrize("change", ["num_images", "sampling", "damaged", "images"])
def test_what_is_of_other_settings_is_drawn_again(path: Path, drawn: list[dict[str, Any]], change: str) -> None:
    config = load_config(path)
    stage_realism(config, 2, quiet)
    drawn.clear()
    if change == "damaged":
        (config.run / REALISM_FILE).write_text("{", encoding="utf-8")
    overrides = {"sampling": ["preview.sampling.steps=2"], "images": ["model.resolution=32"]}.get(change, [])
    stage_realism(load_config(path, overrides), 3 if change == "num_images" else 2, quiet)
    assert len(drawn) == 6


def test_a_stop_loses_only_what_was_being_drawn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(path)
    whole = stage_realism(config, 2, quiet)
    (config.run / REALISM_FILE).unlink()
    real_sample: Callable[..., Any] = vars(module)["sample"]
    num_calls = 0

    def stopped(*arguments: Any, **size: int) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:
            raise KeyboardInterrupt
        return real_sample(*arguments, **size)

    monkeypatch.setattr(module, "sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        stage_realism(config, 2, quiet)
    kept = json.loads((config.run / REALISM_FILE).read_text(encoding="utf-8"))
    assert [list(row["realism"]) for row in kept["rows"]] == [["breast", "cardiac"], ["breast"], []]
    num_calls = 100
    assert stage_realism(config, 2, quiet) == whole
    assert num_calls == 103


def test_the_base_draws_by_what_it_was_made_to_predict(path: Path) -> None:
    config = load_config(path)
    found = stage_realism(config, 2, quiet)
    (config.run / REALISM_FILE).unlink()
    other = stage_realism(load_config(path, ["model.prediction_type=v_prediction"]), 2, quiet)
    assert other.rows[0] == found.rows[0]


def test_the_command(path: Path) -> None:
    arguments = ["evaluate", str(path), "--every-stage", "preview.sampling.steps=1", "--num-images", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "two: 2 images of cardiac\n" in result.stdout
    lines = result.stdout[result.stdout.index("Generated against") :].splitlines()
    assert [line.split()[0] for line in lines[4:9] if line.strip(" \N{BOX DRAWINGS LIGHT HORIZONTAL}")] == [
        *("real", "base", "one", "two")
    ]
    assert max(map(len, lines)) <= 80


def test_a_run_without_held_out_patients_is_refused(path: Path) -> None:
    arguments = ["evaluate", str(path), "--every-stage", f"run={path.parent}/other"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "run `sonoshard prepare` first" in result.stderr
    settings = [f"run={path.parent}/other", "databases.breast.count=6", "databases.cardiac.count=6"]
    prepare_databases(load_config(path, settings))
    result = CliRunner().invoke(app, ["evaluate", str(path), "--every-stage", *settings])
    assert result.exit_code == 2
    assert "no database has 4 held-out patients to compare generated images with: give" in result.stderr


def test_the_table_of_four_databases_fits() -> None:
    names = ("busi", "fetal-planes", "a-database-of-a-long-name", "d")
    statistics = dict.fromkeys(STATISTICS, 1.0)
    real = {name: Realism(distance=0.123, kid=-0.012, statistics=statistics) for name in names}
    cells = {name: Cell(key="", distance=12.345, kid=98765.4, statistics=statistics) for name in names}
    rows = (
        RealismRow(name="base", realism=cells),
        RealismRow(name="one", starts=("base",), databases=("busi",), replay=("d",), realism=cells),
        RealismRow(name="a-stage", starts=("base",), realism={"busi": cells["busi"]}),
    )
    matrix = RealismMatrix(num_images=8, databases=names, real=real, rows=rows)
    console = Console(width=80, file=StringIO())
    print_realism(matrix, console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.rstrip() for line in text.splitlines()]
    by_name = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert by_name["real"] == 4 * ["0.12", "-0.01"]
    assert by_name["one"] == ["12.35*", "98765", "12.35", "98765", "12.35", "98765", "12.35~", "98765"]
    assert by_name["a-stage"] == ["12.35", "98765", "-", "-", "-"]
    assert lines.count(" from base") == 1, "only where the order does not tell it"
