"""The paper's experiments as docs/reproduce-the-paper.md names them: each command runs with its shipped configuration.

The models are random and the images simulated, so the figures mean nothing; that they are there does.
"""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.controlled_model import write_controlled_model
from launch.cli import app
from launch.config import load_config
from launch.prepare import encode_databases, prepare_databases
from models.record import RECORD_FILE
from tests.data.busi_fixture import write_busi
from tests.tiny_random_model import write_tiny_random_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reproduce-the-paper.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`sonoshard downstream (configs/\S+) ([\w-]+)`", PAGE)
SMALL = ["--seeds", "1", "--steps", "2", "--num-images", "6"]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that put a small model and simulated images in the place of Stable Diffusion and BUSI."""
    folder = tmp_path_factory.mktemp("paper")
    write_busi(folder, num_per_label=20)
    return [
        f"model.base={write_tiny_random_model(folder / 'model')}",
        "model.resolution=64",
        f"databases.busi.root={folder}/Dataset_BUSI_with_GT",
        "prepare.validation_fraction=0.15",
        "prepare.test_fraction=0.3",
        "preview.sampling.steps=1",
    ]


def test_the_page_names_three() -> None:
    assert [experiment for _, experiment in COMMANDS] == ["classification", "generated-only", "segmentation"]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "experiment"), COMMANDS)
def test_an_experiment_runs_with_its_configuration(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, experiment: str
) -> None:
    monkeypatch.setenv("DATA", "unused")
    everything = [*overrides, f"run={tmp_path}/run"]
    config = load_config(ROOT / file, everything)
    prepare_databases(config)
    encode_databases(config)
    for number, stage in enumerate(config.stages):
        model = config.stage_model(stage)
        if stage.has_hints:
            write_controlled_model(config.model.base, model, {"steps": stage.steps})
        else:
            write_tiny_random_model(model, number + 1)
            (model / RECORD_FILE).write_text(json.dumps({"steps": stage.steps}), encoding="utf-8")
    result = CliRunner().invoke(app, ["downstream", str(ROOT / file), experiment, *SMALL, *everything])
    assert result.exit_code == 0, result.stderr
    (database,) = json.loads(
        next((config.run / "evaluation").glob(f"*/downstream-{experiment}.json")).read_text(encoding="utf-8")
    )["databases"]
    assert database["name"] == "busi"
    for arm in database["arms"]:
        assert arm["num_tested"] > 0
        assert arm["name"] in result.stdout
