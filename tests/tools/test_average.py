"""Averages written from checkpoints: the engine's own to the bit, others put together, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.tensor_bytes import allocated_bytes
from distributed.checkpoint import find_checkpoint, sealed
from distributed.stored_state import StoredState
from launch.cli import app
from launch.config import load_config
from launch.spawn import run_ranks
from models.record import read_record
from tests.launch.conftest import prepare_run
from tools.average import Part, summed_weights

pytestmark = pytest.mark.slow

LENGTHS = (0.07, 0.1, 0.05)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished run of 20 steps that kept three lengths in checkpoints of every second step."""
    path = prepare_run(tmp_path_factory.mktemp("average"))
    settings = (
        f"ema: {{lengths: [{', '.join(map(str, LENGTHS))}]}}",
        "zero: {stage: 3}",
        "checkpoint: {save_every_steps: 2, keep_last: 99}",
        "validation: {every_steps: 20, num_samples: 3, timesteps_per_sample: 3}",
        "preview: {every_steps: null, prompts: [''], sampling: {steps: 1}}",
    )
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("checkpoint", "valid", "preview"))]
    path.write_text("\n".join([*lines, *settings]) + "\n", encoding="utf-8")
    assert run_ranks(["-m", "launch.rank_process", str(path)], 2) == 0
    return path


@pytest.fixture
def fresh(trained: Path, tmp_path: Path) -> Path:
    """The stage's folder in a copy of the run that a test may damage, as the run left it."""
    copy = shutil.copytree(trained.parent / "run", tmp_path / "run", ignore=shutil.ignore_patterns("averages"))
    return Path(copy) / "stages" / "busi"


def average(config: Path, *arguments: str) -> str:
    """Return what the command prints."""
    result = CliRunner().invoke(app, ["average", str(config), *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refusal(config: Path, *arguments: str) -> str:
    """Return the one line with which the command refuses."""
    result = CliRunner().invoke(app, ["average", str(config), *arguments])
    assert result.exit_code == 2, result.stdout + result.stderr
    assert result.stderr.startswith("sonoshard: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def stage_of(config: Path) -> Path:
    return config.parent / "run" / "stages" / "busi"


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return state


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return float(torch.cat([(left[name] - right[name]).flatten() for name in left]).norm())


def average_of(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    assert record is not None
    found: dict[str, Any] = record["average"]
    return found


def test_a_kept_average_is_the_engines_own_to_the_bit(trained: Path) -> None:
    stage = stage_of(trained)
    output = average(trained)
    folder = stage / "averages" / "0.07"
    assert str(folder) in output
    assert "length 0.07 in step-00000020: as it was kept" in output
    model = weights(stage / "model")
    written = weights(folder)
    assert model.keys() == written.keys()
    assert all(torch.equal(model[name], written[name]) for name in model)
    record, own = read_record(folder), read_record(stage / "model")
    assert record is not None
    assert own is not None
    found = record.pop("average")
    assert own.pop("validation_loss") > 0, "of the stage's own model, not of any average"
    assert record == own
    assert found == {
        "length": 0.07,
        "checkpoint": "step-00000020",
        "made_of": [{"checkpoint": "step-00000020", "average": "ema@0.07", "coefficient": 1.0}],
        "profile_error": 0.0,
    }


def test_another_kept_length_checkpoint_and_folder(trained: Path, tmp_path: Path) -> None:
    average(trained, "--length", "0.1", "--checkpoint", "step-00000006", "--stage", "busi", "--out", f"{tmp_path}/a/b")
    average(trained, "--checkpoint", "BEST", "--out", f"{tmp_path}/best")
    written = weights(tmp_path / "a" / "b")
    checkpoint = stage_of(trained) / "checkpoints" / "step-00000006"
    stored = StoredState(checkpoint, json.loads((checkpoint / "manifest.json").read_text())["groups"])
    assert all(torch.equal(stored.parameter(name, "ema@0.1"), written[name]) for name in written)
    assert average_of(tmp_path / "a" / "b")["checkpoint"] == "step-00000006"
    assert average_of(tmp_path / "best")["checkpoint"] == "step-00000020", "the only one that was validated"


def test_the_folder_is_a_pipeline(trained: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    average(trained, "--length", "0.05", "--out", f"{tmp_path}/model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert pipeline("a tumor", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    assert load_config(trained, [f"model.base={tmp_path}/model"]).model.base == f"{tmp_path}/model"


def forget(stage: Path, name: str) -> None:
    """Take an average out of what the checkpoints say that they hold."""
    for path in stage.glob("checkpoints/step-*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["averages"].remove(name)
        del manifest["sha256"]
        path.write_text(json.dumps(sealed(manifest)))


def test_a_length_that_was_not_kept_is_near_the_one_that_was(trained: Path, fresh: Path) -> None:
    forget(fresh, "ema@0.07")
    output = average(trained, f"run={fresh.parents[1]}", "--length", "0.07")
    assert "length 0.07 in step-00000020: put together from " in output
    assert "step-00000018: ema@0.1, ema@0.05; step-00000020: ema@0.1, ema@0.05; its profile is met to within" in output
    written, own = weights(fresh / "averages" / "0.07"), weights(fresh / "model")
    found = find_checkpoint(fresh / "checkpoints")
    assert found is not None
    stored = StoredState(found.folder, found.manifest["groups"])
    others = [{name: stored.parameter(name, f"ema@{length}") for name in own} for length in (0.05, 0.1)]
    assert distance(written, own) < 0.1 * min(distance(other, own) for other in others)
    made = average_of(fresh / "averages" / "0.07")
    assert made["profile_error"] < 0.02
    assert sum(part["coefficient"] for part in made["made_of"]) == pytest.approx(1)


def test_memory_stays_near_one_copy_of_the_weights(trained: Path) -> None:
    config = load_config(trained)
    found = find_checkpoint(stage_of(trained) / "checkpoints")
    assert found is not None
    parts = [Part(found, f"ema@{length:g}", 1 / 3) for length in LENGTHS]
    peak_bytes = allocated_bytes(lambda: summed_weights(config, config.stages[0], parts), torch.device("cpu"))
    sizes = [tensor.numel() for tensor in weights(stage_of(trained) / "model").values()]
    # Of one parameter: what is read and its buffer in float32, the part and the sum in float64, the sum in float32.
    assert 4 * sum(sizes) <= peak_bytes <= 4 * sum(sizes) + (4 + 4 + 8 + 8 + 4) * max(sizes)
    assert max(sizes) < sum(sizes) / 10, "else this would say nothing"


def test_only_whole_checkpoints_are_put_together(trained: Path, fresh: Path) -> None:
    for name in ("step-00000016", "step-00000020"):
        (fresh / "checkpoints" / name / "slices-00000-of-00002.safetensors").write_bytes(b"")
    output = average(trained, f"run={fresh.parents[1]}", "--length", "0.08")
    assert output.count("skipped: step-00000016: slices-00000-of-00002.safetensors does not match its hash") == 1
    assert output.count("skipped: step-00000020: ") == 1
    assert "length 0.08 in step-00000018" in output
    line = refusal(trained, f"run={fresh.parents[1]}", "--checkpoint", "step-00000020", "--out", f"{fresh}/other")
    assert "step-00000020: slices-00000-of-00002.safetensors does not match its hash" in line


def test_a_length_that_is_too_far_is_refused(trained: Path) -> None:
    line = refusal(trained, "--length", "0.25")
    assert "an average of length 0.25 at step 20 would miss its profile by " in line
    assert "more than 2%" in line
    assert "step-00000002: ema@0.07, ema@0.1, ema@0.05; step-00000004: " in line
    assert "train with this one in ema.lengths" in line


def test_what_is_there_is_not_replaced(trained: Path) -> None:
    model = stage_of(trained) / "model"
    line = refusal(trained, "--out", str(model))
    assert f"{model} is there already: remove it, or give another folder with --out" in line
    assert "average" not in (read_record(model) or {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "bus"], "no stage 'bus': this configuration has busi"),
        (["--length", "0.3"], "--length 0.3 is not between 0 and 0.28: give a fraction such as 0.1"),
        (["--length", "0"], "--length 0 is not between"),
        (["ema.lengths=[]"], "ema.lengths=[] names no length to write: give one with --length"),
        (["--checkpoint", "step-7"], "step-7 in {stage}/checkpoints: give one of LATEST, BEST, step-00000002, step-"),
        (["run={stage}"], "no checkpoint in {stage}/stages/busi/checkpoints: train this stage first"),
        (["model.prediction_type=v_prediction"], "was trained with prediction_type=epsilon, this run has v_prediction"),
        (["model.base=tiny"], "is of another model than tiny: they differ in "),
    ],
)
def test_what_cannot_be_had_is_refused(trained: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    stage = str(stage_of(trained))
    line = refusal(trained, "--out", f"{tmp_path}/out", *(part.format(stage=stage) for part in arguments))
    assert message.format(stage=stage) in line
    assert not (tmp_path / "out").exists()


def test_a_run_without_averages(trained: Path, fresh: Path) -> None:
    for length in LENGTHS:
        forget(fresh, f"ema@{length}")
    (fresh / "checkpoints" / "BEST").unlink()
    run = f"run={fresh.parents[1]}"
    assert "holds no average: with ema.lengths=[] there is only the model" in refusal(trained, run)
    line = refusal(trained, run, "--checkpoint", "BEST")
    assert "no checkpoint BEST in " in line
    assert "give one of LATEST, step-00000002, " in line
