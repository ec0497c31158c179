"""Diffusers folders and single files that others load, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from typer.testing import CliRunner

from launch.cli import app
from models.base import ModelConfig
from models.errors import ModelError
from models.saving import save_pipeline
from models.stable_diffusion import load_unet
from tools.export.export import export

PARTS = ("unet", "vae", "text_encoder")


def same_values(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_diffusers_folder_loads_in_both_pipelines(controlled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(str(controlled), out, "diffusers")
    expected = StableDiffusionControlNetPipeline.from_pretrained(controlled, local_files_only=True)
    with_control = StableDiffusionControlNetPipeline.from_pretrained(out, local_files_only=True)
    without = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    for part in PARTS:
        assert same_values(getattr(with_control, part), getattr(expected, part))
        assert same_values(getattr(without, part), getattr(expected, part))
    assert same_values(with_control.controlnet, expected.controlnet)
    assert with_control.scheduler.config.steps_offset == 1
    assert (out / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    assert json.loads((out / "sonoshard.json").read_text())["steps"] == 7


def test_single_file_and_controlnet_come_back_equal_to_the_bit(controlled: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    export(str(controlled), out, "single-file")
    expected = StableDiffusionControlNetPipeline.from_pretrained(controlled, local_files_only=True)
    again = StableDiffusionPipeline.from_single_file(str(out), config=str(controlled), local_files_only=True)
    for part in PARTS:
        assert same_values(getattr(again, part), getattr(expected, part))
    assert again.scheduler.config.steps_offset == 1
    controlnet = ControlNetModel.from_single_file(
        str(tmp_path / "model-controlnet.safetensors"),
        config=str(controlled),
        subfolder="controlnet",
        local_files_only=True,
    )
    assert same_values(controlnet, expected.controlnet)
    assert "Trained on simulated images only" in (tmp_path / "model.md").read_text()
    assert len(list(tmp_path.iterdir())) == 3
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "model.md").stat().st_mode}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_there_and_back_is_equal_to_the_bit(controlled: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Diffusers, single file and diffusers again, by our own exporter; the ControlNet lies in a file of its own."""
    source, file, back = tmp_path / "source", tmp_path / "model.safetensors", tmp_path / "back"
    stored = StableDiffusionControlNetPipeline.from_pretrained(controlled, torch_dtype=dtype, local_files_only=True)
    stored.save_pretrained(source)
    export(str(source), file, "single-file")
    export(str(file), back, "diffusers", single_file_config=str(source))
    for part in PARTS:
        before, after = (load_file(next((folder / part).glob("*.safetensors"))) for folder in (source, back))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) and after[key].dtype == dtype for key in before), part
    controlnet = ControlNetModel.from_single_file(
        str(tmp_path / "model-controlnet.safetensors"),
        config=str(source),
        subfolder="controlnet",
        torch_dtype=dtype,
        local_files_only=True,
    )
    assert same_values(controlnet, stored.controlnet)


def test_a_single_file_is_a_source_too(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    export(str(plain), file, "single-file")
    export(str(file), tmp_path / "out", "diffusers", single_file_config=str(plain))
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert same_values(again.unet, StableDiffusionPipeline.from_pretrained(plain).unet)
    with pytest.raises(ModelError, match="is a single file already: copy it"):
        export(str(file), tmp_path / "again.safetensors", "single-file", single_file_config=str(plain))
    with pytest.raises(ModelError, match="does not hold its architecture"):
        export(str(file), tmp_path / "again", "onnx")


def test_the_folder_of_a_stage_means_its_model(plain: Path, tmp_path: Path) -> None:
    config = ModelConfig(base=str(plain))
    weights = {name: tensor.detach() for name, tensor in load_unet(config, torch.float32).named_parameters()}
    stage = tmp_path / "stages" / "busi"
    (stage / "checkpoints").mkdir(parents=True)
    save_pipeline(config, weights, stage / "model", {"steps": 3})
    export(str(stage), tmp_path / "out", "diffusers")
    assert "# busi\n" in (tmp_path / "out" / "README.md").read_text()


def test_float16_stays_float16(tmp_path: Path) -> None:
    export("tiny", tmp_path / "out", "diffusers")
    files = [next((tmp_path / "out" / part).glob("*.safetensors")) for part in PARTS]
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float16}


def refusal(*arguments: str) -> str:
    """Return the one line with which the command refuses."""
    result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == 2, result.stdout + result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("form", ["diffusers", "single-file", "onnx"])
def test_nothing_is_overwritten(plain: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    assert f"{out} is there already" in refusal(str(plain), str(out), "--to", form)
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_what_lies_beside_a_single_file_is_not_overwritten(controlled: Path, tmp_path: Path) -> None:
    (tmp_path / "out-controlnet.safetensors").write_text("mine")
    message = refusal(str(controlled), str(tmp_path / "out.safetensors"), "--to", "single-file")
    assert "out-controlnet.safetensors is there already" in message
    assert "needed is one that ends in .safetensors" in refusal(
        str(controlled), str(tmp_path / "out"), "--to", "single-file"
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_a_source_that_is_damaged_or_absent_is_refused(plain: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert "'nothing' was not found" in refusal("nothing", out, "--to", "onnx")
    shutil.copytree(plain, tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "holds no diffusion_pytorch_model.safetensors" in refusal(str(tmp_path / "model"), out, "--to", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
