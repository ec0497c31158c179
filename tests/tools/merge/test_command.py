"""The command: folders, single files and checkpoints become one folder; what cannot be is refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from launch.cli import app
from launch.config import RunConfig, load_config
from launch.lineage import LINEAGE_FILE, read_lineage
from launch.stage_config import StageConfig
from models.base import ModelConfig
from models.controlnet import load_controlnet
from models.errors import ModelError
from models.merging.merged import Merged
from models.merging.recipe import make_recipe
from models.record import RECORD_FILE, read_record
from models.single_file import save_controlnet_file, save_single_file
from models.stable_diffusion import load_text_encoder, load_unet
from models.trained_part import LoraConfig, lora_files, train_only, whole_weights
from tests.tiny_random_model import write_tiny_random_model
from tests.tools.merge.written_checkpoint import write_checkpoint
from tools.merge.checkpoint_source import open_model
from tools.merge.command import write_recipe
from tools.verify import verify

State = dict[str, Tensor]

WEIGHTS = "diffusion_pytorch_model.safetensors"
# float32 sums of two products.
RTOL, ATOL = 1e-6, 1e-7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models; the first two have a ControlNet, and a record and a lineage as a run leaves them."""
    folder = tmp_path_factory.mktemp("merge")
    made = [write_tiny_random_model(folder / f"model-{seed}", seed) for seed in range(3)]
    for number, path in enumerate(made[:2]):
        load_controlnet(ModelConfig(base=str(path)), torch.float32, number).save_pretrained(path / "controlnet")
        randomise(path / "controlnet" / WEIGHTS, number)
        (path / RECORD_FILE).write_text(json.dumps({"steps": number, "hint_colours": {"tumor": [1, 2, 3]}}))
        write_ties(path, number)
    return made


def randomise(path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    save_file({name: torch.randn(value.shape, generator=generator) for name, value in load_file(path).items()}, path)


def write_ties(folder: Path, tie: int) -> None:
    from safetensors.numpy import save_file as save_arrays

    empty = np.empty((0, 0), dtype=np.uint8)
    sides = {"trained.ties": np.array([tie], dtype=np.uint64), "held_out.ties": np.array([tie + 10], dtype=np.uint64)}
    save_arrays({**sides, "trained.likenesses": empty, "held_out.likenesses": empty}, folder / LINEAGE_FILE)


def unet_of(folder: Path, part: str = "unet") -> State:
    state: State = load_file(folder / part / WEIGHTS)
    return state


def merge(*arguments: object) -> str:
    """Return what the command prints."""
    result = CliRunner().invoke(app, ["merge", *map(str, arguments)])
    assert result.exit_code == 0, result.stdout + result.stderr
    return result.stdout


def refusal(*arguments: object) -> str:
    """Return the one line with which the command refuses."""
    result = CliRunner().invoke(app, ["merge", *map(str, arguments)])
    assert result.exit_code == 2, result.stdout + result.stderr
    assert result.stderr.startswith("sonoshard: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def assert_mean(found: State, states: list[State], weights: list[float]) -> None:
    assert found.keys() == states[0].keys()
    for name, value in found.items():
        expected = sum(weight * state[name].double() for weight, state in zip(weights, states, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=RTOL, atol=ATOL)


def test_both_networks_are_merged_and_the_rest_is_the_first_ones(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    out = tmp_path / "new" / "out"
    output = merge(out, *folders[:2], "--weights", "1,3")
    assert "weighted merge of 2 models: unet, controlnet" in output
    for part in ("unet", "controlnet"):
        assert_mean(unet_of(out, part), [unet_of(folder, part) for folder in folders[:2]], [0.25, 0.75])
    for name in (f"vae/{WEIGHTS}", "text_encoder/model.safetensors", "tokenizer/vocab.json", "unet/config.json"):
        assert (out / name).read_bytes() == (folders[0] / name).read_bytes()
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(out, local_files_only=True)
    assert torch.equal(pipeline.unet.conv_in.weight, unet_of(out)["conv_in.weight"])
    record = read_record(out)
    assert record is not None
    assert [parent["steps"] for parent in record["parents"]] == [0, 1]
    assert record["hint_colours"] == {"tumor": [1, 2, 3]}
    assert record["torch"] == torch.__version__.split("+")[0] or record["torch"] == torch.__version__
    with safe_open(out / "unet" / WEIGHTS, framework="pt") as file:
        told = json.loads(file.metadata()["sonoshard.merge"])
    assert told == record["merge"]
    assert told["method"] == "weighted"
    assert [source["weight"] for source in told["sources"]] == [0.25, 0.75]
    assert told["sources"][1]["sha256"]["unet"] == sha256(folders[1] / "unet" / WEIGHTS)
    sides = read_lineage(str(out))
    assert sides is not None
    assert sides["trained"].ties.tolist() == [0, 1]
    assert sides["held_out"].ties.tolist() == [10, 11]
    assert verify([out]) == 0
    assert "all 4 are right" in capsys.readouterr().out
    assert not list(out.parent.glob(".*"))


def sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_without_a_controlnet_and_one_part_alone(folders: list[Path], tmp_path: Path) -> None:
    assert "models: unet\n" in merge(tmp_path / "mixed", *folders, "--method", "soup")
    assert unet_of(tmp_path / "mixed", "controlnet").keys() == unet_of(folders[0], "controlnet").keys()
    merge(tmp_path / "control", *folders[:2], "--part", "controlnet")
    for name, value in unet_of(tmp_path / "control").items():
        assert torch.equal(value, unet_of(folders[0])[name]), "the UNet is the first one's"
    line = refusal(tmp_path / "out", *folders, "--part", "controlnet")
    assert f"{folders[2]} has no controlnet: leave it out, or merge another part" in line


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        (
            {"method": "dare", "density": 0.4, "scale": 0.5, "seed": 3, "part": "unet", "weights": [1, 2]},
            ["--density", "0.4", "--scale", "0.5", "--seed", "3", "--part", "unet", "--weights", "1,2"],
        ),
        (
            {"method": "blocks", "blocks": {"mid": [0.2, 0.8], "attention": [1, 0]}, "dtype": "bf16"},
            ["--block", "mid=0.2,0.8", "--block", "attention=1,0", "--dtype", "bf16"],
        ),
    ],
)
def test_a_recipe_file_is_the_same_as_the_flags(
    folders: list[Path], tmp_path: Path, settings: dict[str, Any], flags: list[str]
) -> None:
    recipe = {"sources": [str(folder) for folder in folders[:2]], **settings}
    if settings["method"] == "dare":
        recipe["base"] = str(folders[2])
        flags = [*flags, "--base", str(folders[2])]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    merge(tmp_path / "file", "--recipe", tmp_path / "recipe.yaml")
    merge(tmp_path / "flags", *folders[:2], "--method", settings["method"], *flags)
    name = f"unet/{WEIGHTS}"
    assert (tmp_path / "flags" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()
    record = read_record(tmp_path / "file")
    assert record is not None
    told = {key: value for key, value in record["merge"].items() if key in settings}
    assert told == {key: value for key, value in settings.items() if key in told}
    assert {"seed", "blocks"} & told.keys(), "what its result depends on is recorded"


def plain(method: str, a: Any, b: Any, base: Any) -> Any:
    """One tensor by the formula, in numpy; a quarter and three quarters, or a quarter of the second's difference."""
    if method == "slerp":
        angle = np.arccos((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
        return (np.sin(0.25 * angle) * a + np.sin(0.75 * angle) * b) / np.sin(angle)
    if method == "add-difference":
        return a + 0.25 * (b - base)
    tasks = []
    for model in (a, b):
        task = model - base
        least = np.sort(np.abs(task), axis=None)[-max(1, round(0.3 * task.size))]
        tasks.append(np.where(np.abs(task) >= least, task, 0))
    sign = np.sign(0.25 * tasks[0] + 0.75 * tasks[1])
    agree = [np.where((np.sign(task) == sign) & (task != 0), w, 0) for w, task in zip((0.25, 0.75), tasks, strict=True)]
    total = agree[0] + agree[1]
    mean = (agree[0] * tasks[0] + agree[1] * tasks[1]) / np.where(total > 0, total, 1)
    return base + 0.7 * mean


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("slerp", ["--weights", "1,3"]),
        ("add-difference", ["--weights", "0.25", "--base", "{2}"]),
        ("ties", ["--weights", "1,3", "--density", "0.3", "--scale", "0.7", "--base", "{2}"]),
    ],
)
def test_whole_networks_are_the_plain_formula(
    tmp_path: Path, folders: list[Path], method: str, flags: list[str]
) -> None:
    for number in range(3):
        shutil.copytree(folders[2], tmp_path / str(number))
        randomise(tmp_path / str(number) / "unet" / WEIGHTS, number)
    models = [tmp_path / str(number) for number in range(3)]
    merge(tmp_path / "out", *models[:2], "--method", method, *(flag.format(*models) for flag in flags))
    states = [unet_of(model) for model in models]
    for name, value in unet_of(tmp_path / "out").items():
        expected = plain(method, *(state[name].numpy() for state in states))
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-5)  # sums of thousands in float32
    record = read_record(tmp_path / "out")
    assert record is not None
    told = record["merge"]
    expected_weights = [None, 0.25] if method == "add-difference" else [0.25, 0.75]
    assert [source.get("weight") for source in told["sources"]] == expected_weights
    if method != "slerp":
        assert told["base"]["sha256"] == {"unet": sha256(models[2] / "unet" / WEIGHTS)}
    if method == "ties":
        assert (told["density"], told["scale"]) == (0.3, 0.7)


def test_blocks_and_a_dtype(folders: list[Path], tmp_path: Path) -> None:
    flags = ["--method", "blocks", "--block", "mid=0,1", "--block", "down.0=1,0", "--dtype", "fp16", "--part", "unet"]
    merge(tmp_path / "out", *folders[:2], *flags)
    one, two, found = unet_of(folders[0]), unet_of(folders[1]), unet_of(tmp_path / "out")
    assert {value.dtype for value in found.values()} == {torch.float16}
    for name, value in found.items():
        share = 1.0 if name.startswith("mid_block") else 0.0 if name.startswith("down_blocks.0") else 0.5
        torch.testing.assert_close(value.float(), one[name].lerp(two[name], share), rtol=1e-3, atol=1e-6)
    load_unet(ModelConfig(base=str(tmp_path / "out")), torch.float32)


def test_a_single_file_is_a_source_and_may_be_the_first(folders: list[Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    file = save_single_file(folders[1], tmp_path / "model.safetensors")
    merge(tmp_path / "out", file, folders[2], "--single-file-config", folders[0])
    assert_mean(unet_of(tmp_path / "out"), [unet_of(folder) for folder in folders[1:]], [0.5, 0.5])
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    vae = load_file(folders[1] / "vae" / WEIGHTS)
    assert all(torch.equal(value, vae[name]) for name, value in pipeline.vae.state_dict().items())


def test_what_a_single_file_says_that_it_predicts_counts(folders: list[Path], tmp_path: Path) -> None:
    velocity = write_tiny_random_model(tmp_path / "velocity", prediction_type="v_prediction")
    file = save_single_file(velocity, tmp_path / "velocity.safetensors")
    flags = ("--single-file-config", folders[0])  # whose own scheduler says epsilon
    assert "predicts v_prediction" in refusal(tmp_path / "out", folders[1], file, *flags)
    merge(tmp_path / "out", file, velocity, *flags)
    said = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    other = json.loads((folders[0] / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    assert said == {**other, "prediction_type": "v_prediction"}


def test_a_single_file_is_unpacked_as_it_is_stored(folders: list[Path], tmp_path: Path) -> None:
    """Values, dtypes, names and shapes of the other parts are those of the folder that the file was made of."""
    half = Path(shutil.copytree(folders[1], tmp_path / "half"))
    for name in (f"vae/{WEIGHTS}", "text_encoder/model.safetensors"):
        save_file({key: value.half() for key, value in load_file(half / name).items()}, half / name)
    for number, folder in enumerate((folders[1], half)):
        file = save_single_file(folder, tmp_path / "model.safetensors")
        out = tmp_path / f"out-{number}"
        merge(out, file, folders[2], "--single-file-config", folders[0])
        for name in (f"vae/{WEIGHTS}", "text_encoder/model.safetensors"):
            found, expected = load_file(out / name), load_file(folder / name)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert found[key].dtype == value.dtype
                assert torch.equal(found[key], value)
        assert not (out / "controlnet").exists(), "it would be that of --single-file-config"
        assert json.loads((out / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_a_single_file_without_a_part_is_refused(folders: list[Path], tmp_path: Path) -> None:
    file = save_single_file(folders[1], tmp_path / "model.safetensors")
    tensors = load_file(file)
    for part, key in (("unet", "model.diffusion_model.out.2.bias"), ("vae", "first_stage_model.quant_conv.bias")):
        save_file({name: value for name, value in tensors.items() if name != key}, file)
        line = refusal(tmp_path / "out", file, folders[2], "--single-file-config", folders[0])
        assert f"tensors of the {part} of {folders[0]} are missing from {file} or have another size" in line
        assert f"(the first, {key}: nothing); give with --single-file-config the model" in line
    for prefix, message in (
        ("other.", "holds no model that is known here (the first of its tensors is other.0)"),
        ("first_stage_model.", "holds a vae alone: a UNet, a ControlNet or a LoRA is needed"),
    ):
        save_file({f"{prefix}0": torch.zeros(1)}, file)
        assert message in refusal(tmp_path / "out", file, folders[2], "--single-file-config", folders[0])
    assert not (tmp_path / "out").exists()


def test_the_text_encoder_of_stable_diffusion_2_in_a_single_file(folders: list[Path], tmp_path: Path) -> None:
    """Its original stacks the projections, names them otherwise, and has a last layer that is not used."""
    file = save_single_file(folders[1], tmp_path / "model.safetensors")
    tensors, ours = load_file(file), load_file(folders[1] / "text_encoder" / "model.safetensors")
    prefix = "cond_stage_model.model."
    stored = {key: value for key, value in tensors.items() if not key.startswith("cond_stage_model.")}
    stored |= {f"{prefix}{key}": value.half() for key, value in as_open_clip(ours).items()}
    last = f"{prefix}transformer.resblocks.0."
    stored |= {key.replace("blocks.0", "blocks.99"): 2 * value for key, value in stored.items() if key.startswith(last)}
    save_file(stored, file)
    merge(tmp_path / "out", file, folders[2], "--single-file-config", folders[0])
    found = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[key], ours[key].half()) for key in ours), "as it is stored"
    # Diffusers' own reader says what is right.
    config = ModelConfig(base=str(file), single_file_config=str(folders[0]))
    theirs = load_text_encoder(config, "cpu", torch.float32)[1].state_dict()
    assert all(torch.equal(value.float(), theirs[key]) for key, value in found.items())
    del stored[f"{prefix}ln_final.bias"]
    save_file(stored, file)
    line = refusal(tmp_path / "other", file, folders[2], "--single-file-config", folders[0])
    assert f"{file} has nothing where {prefix}ln_final.bias of an OpenCLIP text encoder is wanted" in line


def as_open_clip(state: State) -> State:
    """Return a CLIP text encoder as OpenCLIP's code (src/open_clip/transformer.py) has it."""
    names = {"position_embedding.weight": "positional_embedding", "token_embedding.weight": "token_embedding.weight"}
    found = {names[key.removeprefix("embeddings.")]: v for key, v in state.items() if key.startswith("embeddings.")}
    found |= {key.replace("final_layer_norm", "ln_final"): v for key, v in state.items() if "final_layer" in key}
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts["self_attn.out_proj"] = "attn.out_proj"
    for key, value in state.items():
        if key.startswith("encoder.layers."):
            _, _, layer, module = key.split(".", 3)
            home = f"transformer.resblocks.{layer}"
            name, end = module.rsplit(".", 1)
            if name in parts:
                found[f"{home}.{parts[name]}.{end}"] = value
            elif name == "self_attn.q_proj":
                stacked = [state[key.replace("q_proj", projection)] for projection in ("q_proj", "k_proj", "v_proj")]
                found[f"{home}.attn.in_proj_{end}"] = torch.cat(stacked)
    return found


def test_the_single_file_of_a_controlnet(folders: list[Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    file = save_controlnet_file(folders[1], tmp_path / "control.safetensors")
    states = [unet_of(folder, "controlnet") for folder in folders[:2]]
    output = merge(tmp_path / "second", folders[0], file, "--single-file-config", folders[0], "--weights", "1,3")
    assert "merge of 2 models: controlnet\n" in output
    assert_mean(unet_of(tmp_path / "second", "controlnet"), states, [0.25, 0.75])
    assert (tmp_path / "second" / "unet" / WEIGHTS).read_bytes() == (folders[0] / "unet" / WEIGHTS).read_bytes()
    # First, with a model that has no ControlNet itself: its UNet is the result's.
    merge(tmp_path / "first", file, folders[0], "--single-file-config", folders[2], "--weights", "3,1")
    assert_mean(unet_of(tmp_path / "first", "controlnet"), states, [0.25, 0.75])
    assert (tmp_path / "first" / "unet" / WEIGHTS).read_bytes() == (folders[2] / "unet" / WEIGHTS).read_bytes()
    StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "first", local_files_only=True)
    line = refusal(tmp_path / "out", file, folders[0], "--single-file-config", folders[0], "--part", "unet")
    assert f"{file} has no unet: leave it out, or merge another part" in line
    assert "set model.single_file_config to the diffusers folder" in refusal(tmp_path / "out", folders[0], file)


@pytest.fixture
def run(folders: list[Path], tmp_path: Path) -> RunConfig:
    """A run of four stages, each from the base: everything, LoRA, cross-attention and a ControlNet train."""
    path = tmp_path / "config.yaml"
    lora = "trains: lora, lora: {rank: 3, alpha: 6}"
    stages = {"all": "", "lora": lora, "cross": "trains: cross_attention", "control": "kind: controlnet"}
    lines = [f"  - {{name: {name}, databases: [busi], steps: 9, start: base, {more}}}" for name, more in stages.items()]
    text = (
        f"run: {tmp_path}/run\nmodel: {{base: {folders[2]}}}\ndatabases: {{busi: {{kind: busi, root: {tmp_path}}}}}\n"
    )
    path.write_text(text + "stages:\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return load_config(path)


def trained_by(config: RunConfig, stage: StageConfig, seed: int) -> State:
    """Return random values for what a stage trains."""
    torch.manual_seed(seed)
    if stage.has_hints:
        network = load_controlnet(config.model, torch.float32, 0)
    else:
        network = load_unet(config.model, torch.float32)
        train_only(network, stage.trains, stage.lora)
    return {name: torch.randn(p.shape) for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_checkpoints_give_raw_and_averaged_weights_with_the_rest_of_the_base(
    run: RunConfig, folders: list[Path], tmp_path: Path, number: int
) -> None:
    stage = run.stages[number]
    kinds = {kind: trained_by(run, stage, seed) for seed, kind in enumerate(("master", "ema@0.05", "ema@0.1"))}
    folder = write_checkpoint(run, stage, kinds)
    for suffix, kind in (
        ("@raw", "master"),
        ("@ema", "ema@0.05"),
        ("", "ema@0.05"),
        ("@ema=0.1", "ema@0.1"),
        ("@ema=0.10", "ema@0.1"),
    ):
        source = open_model(f"{folder}{suffix}").networks["unet"]
        expected = whole_weights(run.model, kinds[kind], stage.trains, stage.lora)
        merged = Merged(make_recipe(sources=["one"]), [source])
        assert merged.tensors.keys() == expected.keys()
        for name, value in expected.items():
            found = torch.cat(list(merged.pieces(name))).view(value.shape)
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)  # the fold's products, in another order
    merge(tmp_path / "out", f"{folder}@raw", folders[0], "--weights", "1,1", "--part", "unet")
    states = [whole_weights(run.model, kinds["master"], stage.trains, stage.lora), unet_of(folders[0])]
    for name, value in unet_of(tmp_path / "out").items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2, rtol=1e-5, atol=1e-5)
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record["parents"][0]["checkpoint_weights"] == "master"
    assert record["parents"][0]["steps"] == 7


def test_pieces_of_a_folded_matrix_may_begin_anywhere(run: RunConfig) -> None:
    stage = run.stages[1]
    assert isinstance(stage.lora, LoraConfig)
    trained = trained_by(run, stage, 0)
    source = open_model(f"{write_checkpoint(run, stage, {'master': trained})}@ema").networks["unet"]
    whole = whole_weights(run.model, trained, "lora", stage.lora)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    for start, stop in ((0, 5), (31, 33), (40, 200), (1000, 1024)):
        found = source.read(name, start, stop)
        torch.testing.assert_close(found, whole[name].flatten()[start:stop], rtol=1e-5, atol=1e-5)


def test_a_file_of_low_rank_changes_is_folded_into_the_model_that_it_was_trained_from(
    run: RunConfig, folders: list[Path], tmp_path: Path
) -> None:
    stage = run.stages[1]
    trained = trained_by(run, stage, 0)
    ((name, content),) = lora_files(trained, "lora", stage.lora).items()
    file = tmp_path / name
    file.write_bytes(content)
    merge(tmp_path / "out", file, folders[0], "--single-file-config", folders[2], "--weights", "1,3", "--part", "unet")
    states = [whole_weights(run.model, trained, "lora", stage.lora), unet_of(folders[0])]
    for name, value in unet_of(tmp_path / "out").items():
        expected = states[0][name] * 0.25 + states[1][name] * 0.75
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)  # the fold's products, in another order
    text_encoder = "text_encoder/model.safetensors"
    assert (tmp_path / "out" / text_encoder).read_bytes() == (folders[2] / text_encoder).read_bytes()
    line = refusal(tmp_path / "no", file, folders[0], "--single-file-config", "tiny")
    assert f"{file} is no LoRA of tiny: at " in line
    assert "give with --single-file-config the model that it was trained from" in line
    assert "set model.single_file_config to the diffusers folder" in refusal(tmp_path / "no", file, folders[0])
    changes = load_file(file)
    save_file({**changes, "text_encoder.q_proj.lora_A.weight": torch.zeros(3, 4)}, file)
    line = refusal(tmp_path / "no", file, folders[0], "--single-file-config", folders[2])
    assert f"{file} has text_encoder.q_proj.lora_A.weight, and what is folded in is unet.MODULE.lora_A.weight" in line
    save_file({key: value for key, value in changes.items() if ".lora_B." in key}, file)
    line = refusal(tmp_path / "no", file, folders[0], "--single-file-config", folders[2])
    assert "B, A and the matrix have the shapes [16, 3], [] and [16, 16] ([]: none)" in line


def test_the_checkpoint_of_a_controlnet(run: RunConfig, folders: list[Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    stage = run.stages[3]
    trained = trained_by(run, stage, 0)
    folder = write_checkpoint(run, stage, {"master": trained})
    merge(tmp_path / "out", folder, folders[0], "--weights", "3,1")
    assert_mean(unet_of(tmp_path / "out", "controlnet"), [trained, unet_of(folders[0], "controlnet")], [0.75, 0.25])
    assert_mean(unet_of(tmp_path / "out"), [unet_of(folders[2]), unet_of(folders[0])], [0.75, 0.25])
    StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    record = read_record(tmp_path / "out")
    assert record is not None
    assert "hint_colours" in record


def test_a_stages_folder_is_its_model(run: RunConfig, folders: list[Path], tmp_path: Path) -> None:
    stage = run.stage_path(run.stages[0])
    shutil.copytree(folders[1], stage / "model")
    merge(tmp_path / "out", stage, folders[0])
    assert_mean(unet_of(tmp_path / "out"), [unet_of(folders[1]), unet_of(folders[0])], [0.5, 0.5])


def test_checkpoints_that_cannot_be_read_are_refused(run: RunConfig, folders: list[Path], tmp_path: Path) -> None:
    stage = run.stages[2]
    folder = write_checkpoint(run, stage, {"master": trained_by(run, stage, 0), "ema@0.05": trained_by(run, stage, 1)})
    line = refusal(tmp_path / "out", f"{folder}@ema=0.2", folders[0])
    assert f"{folder} has no weights @ema=0.2: give one of @raw, @ema=0.05" in line
    assert "has no weights @ema=x: give one of" in refusal(tmp_path / "out", f"{folder}@ema=x", folders[0])
    assert f"{folders[1]} is no checkpoint, of which" in refusal(tmp_path / "out", f"{folders[1]}@raw", folders[0])
    moved = shutil.copytree(folder, tmp_path / "step-00000007")
    assert "is no checkpoint within its run" in refusal(tmp_path / "out", moved, folders[0])
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4])
    assert f"{file.name} does not match its hash" in refusal(tmp_path / "out", folder, folders[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to merge: give sources, --recipe, --greedy-soup or --search"),
        (["{0}", "nowhere"], "base 'nowhere' was not found"),
        (["{0}", "{1}", "--weights", "1;1"], "--weights=1;1 is not a list of numbers such as 0.5,0.5"),
        (["{0}", "{1}", "--weights", "1"], "weights has 1 numbers, needed 2"),
        (["{0}", "{1}", "--method", "mean"], "method 'mean' is unknown"),
        (["{0}", "{1}", "--method", "ties"], "method ties needs base"),
        (["{0}", "{1}", "--method", "blocks", "--block", "mid"], "--block mid is not NAME=W,W"),
        (["{0}", "{1}", "--seed", "0"], "seed is for method dare alone"),
        (["{0}", "--recipe", "{0}/none.yaml"], "the sources of a merge with --recipe stand in "),
        (["--recipe", "{0}/none.yaml"], "no recipe {0}/none.yaml: give a YAML file"),
        (["--recipe", "{0}/tokenizer/merges.txt"], "merges.txt holds str, needs keys and values"),
        (["--recipe", "{0}/sonoshard.json"], "unknown key steps of a merge"),
        (["--recipe", "a", "--search", "b"], "--recipe and --search each say what to merge: give one of them"),
        (["--search", "b", "--density", "0.2"], "--density has no effect with --search: leave it out"),
        (["--search", "b", "--method", "weighted"], "--method has no effect with --search: leave it out"),
        (["--greedy-soup", "{0}/none.yaml"], "no configuration file {0}/none.yaml"),
        (["{0}", "tiny"], "{0} has no down_blocks.1.attentions.0.norm.bias, "),
    ],
)
def test_what_cannot_be_merged_is_refused(
    folders: list[Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    line = refusal(tmp_path / "out", *(argument.format(*folders) for argument in arguments))
    assert message.format(*folders) in line
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_other_predictions_are_refused(folders: list[Path], tmp_path: Path) -> None:
    assert f"{folders[2]} is there already: remove it" in refusal(folders[2], *folders[:2])
    other = write_tiny_random_model(tmp_path / "v", 4, "v_prediction")
    line = refusal(tmp_path / "out", folders[0], other)
    assert f"{other} predicts v_prediction and {folders[0]} epsilon" in line


def with_colours(folder: Path, target: Path, colours: dict[str, list[int]]) -> Path:
    """Return a copy of a model whose ControlNet knows such masks."""
    shutil.copytree(folder, target)
    (target / RECORD_FILE).write_text(json.dumps({"hint_colours": colours}))
    return target


def test_controlnets_of_other_masks_are_refused(folders: list[Path], tmp_path: Path) -> None:
    """The fixture's models know a tumor in (1, 2, 3)."""
    other = with_colours(folders[1], tmp_path / "other", {"tumor": [3, 2, 1]})
    line = refusal(tmp_path / "out", folders[0], other)
    assert f"{other} was trained on masks with tumor in (3, 2, 1) and {folders[0]} with tumor in (1, 2, 3)" in line
    assert "are not merged; give --part unet" in line
    renamed = with_colours(folders[1], tmp_path / "renamed", {"cyst": [1, 2, 3]})
    line = refusal(tmp_path / "out", folders[0], renamed)
    assert f"{renamed} was trained on masks with cyst in (1, 2, 3) and {folders[0]} with tumor in (1, 2, 3)" in line
    line = refusal(tmp_path / "out", *folders[:2], "--method", "dare", "--base", other)
    assert f"{other} was trained on masks with tumor in (3, 2, 1)" in line, "of a base too"
    merge(tmp_path / "unet", folders[0], other, "--part", "unet")
    record = read_record(tmp_path / "unet")
    assert record is not None
    assert record["hint_colours"] == {"tumor": [1, 2, 3]}, "the first one's ControlNet is in the folder"


def test_a_merge_of_controlnets_knows_the_masks_of_all(folders: list[Path], tmp_path: Path) -> None:
    more = with_colours(folders[1], tmp_path / "more", {"tumor": [1, 2, 3], "cyst": [4, 5, 6]})
    unknown = Path(shutil.copytree(folders[1], tmp_path / "unknown", ignore=shutil.ignore_patterns(RECORD_FILE)))
    merge(tmp_path / "out", unknown, folders[0], more)
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record["hint_colours"] == {"tumor": [1, 2, 3], "cyst": [4, 5, 6]}


def test_two_processes_that_write_one_folder_do_not_disturb_each_other(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    recipe = make_recipe(sources=[str(folder) for folder in folders], part="unet")
    whole = Merged.all_pieces

    def second(merged: Merged) -> Any:
        monkeypatch.setattr(Merged, "all_pieces", whole)
        write_recipe(recipe, out)
        yield from whole(merged)

    monkeypatch.setattr(Merged, "all_pieces", second)
    with pytest.raises(ModelError, match=f"{out} has been written by another process: it is left as it is"):
        write_recipe(recipe, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_mean(unet_of(out), [unet_of(folder) for folder in folders], [1 / 3] * 3)


def test_a_merge_that_fails_leaves_nothing(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("disk gone")

    monkeypatch.setattr(Merged, "all_pieces", fail)
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "out"), *map(str, folders)])
    assert result.exit_code == 1
    assert "disk gone" in result.stderr
    assert not list(tmp_path.iterdir())
