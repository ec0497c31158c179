"""A bundle says what is in it, computes what torch computes, and is the same whenever it is written."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from launch.cli import app
from models.base import ModelConfig
from models.errors import ModelError
from models.merging.source import stored_places
from models.sampling import SamplingConfig, sample
from models.stable_diffusion import load_text_encoder
from sampler.bundle import open_bundle
from sampler.selftest import run_selftest, table
from tests.tiny_random_model import NUM_TOKENS
from tests.tools.export.conftest import PALETTE, TRAINING
from tools.export import parity
from tools.export.export import export
from tools.export.model_card import LABELS
from tools.export.parity_table import parity_table
from tools.export.stored_weights import write_weights


def manifest_of(bundle: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return said


def files_of(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_manifest_names_every_file_with_its_hash(bundle: Path) -> None:
    files = manifest_of(bundle)["files"]
    found = files_of(bundle)
    del found["manifest.json"]
    assert {name: told["sha256"] for name, told in files.items()} == found
    assert all((bundle / name).stat().st_size == told["bytes"] for name, told in files.items())
    assert {"tokenizer.json", "MODEL_CARD.md", "parity.npz", "sampler/__init__.py"} <= found.keys()


def test_manifest_says_what_the_model_is(bundle: Path) -> None:
    said = manifest_of(bundle)
    assert (said["format"], said["version"], said["name"]) == ("sonoshard-bundle", 2, "controlled")
    assert said["prediction_type"] == "epsilon"
    assert said["schedule"]["beta_schedule"] == "scaled_linear"
    assert said["resolution"] == 64
    assert said["latent"] == {"channels": 4, "pixels": 8, "scaling_factor": 0.5}
    assert said["prompts"] == TRAINING.prompts
    assert said["training_data"] == TRAINING.databases
    assert [one["name"] for one in said["mask_palette"]] == PALETTE
    assert said["mask_palette"][1] == {"number": 1, "name": "lesion", "colour": [230, 25, 75], "trained": True}
    assert [one["trained"] for one in said["mask_palette"]] == [True, True, False]
    assert said["parents"][0]["validation_loss"] == 0.25
    assert set(said["graphs"]) == {
        *("text_encoder", "unet", "vae_decoder"),
        *("hint_embedding", "controlnet", "unet_with_control"),
    }
    assert said["graphs"]["unet"]["inputs"]["latents"]["shape"] == ["batch", 4, "height", "width"]


def test_graphs_have_the_inputs_and_outputs_that_the_manifest_says(bundle: Path) -> None:
    for graph in manifest_of(bundle)["graphs"].values():
        model = onnx.load(bundle / graph["file"], load_external_data=False)
        assert [value.name for value in model.graph.input] == list(graph["inputs"])
        assert [value.name for value in model.graph.output] == list(graph["outputs"])
        assert (bundle / graph["file"]).stat().st_size < 600_000, "weights lie outside"


def test_both_unets_share_one_file_of_weights(bundle: Path) -> None:
    graphs = manifest_of(bundle)["graphs"]
    assert graphs["unet"]["weights"] == graphs["unet_with_control"]["weights"] == "graphs/unet.safetensors"
    stored = stored_places(bundle / "graphs" / "unet.safetensors")
    for name in ("unet", "unet_with_control"):
        model = onnx.load(bundle / graphs[name]["file"], load_external_data=False)
        outside = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
        assert outside == stored.keys()


def test_graphs_do_not_depend_on_weights_or_precision(bundle: Path, half_bundle: Path, byte_bundle: Path) -> None:
    for name in ("unet", "vae_decoder", "text_encoder", "hint_embedding", "controlnet", "unet_with_control"):
        texts = []
        for folder in (bundle, half_bundle, byte_bundle):
            model = onnx.load(folder / "graphs" / f"{name}.onnx", load_external_data=False)
            del model.graph.initializer[:]
            texts.append(model.SerializeToString(deterministic=True))
        assert len(set(texts)) == 1, name


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 5, 11)])
def test_unet_takes_any_batch_and_size(controlled: Path, bundle: Path, batch: int, height: int, width: int) -> None:
    import onnxruntime
    from diffusers import UNet2DConditionModel

    random = np.random.default_rng(0)
    inputs = {
        "latents": random.standard_normal((batch, 4, height, width), dtype=np.float32),
        "timestep": np.linspace(3, 900, batch, dtype=np.float32),
        "text": random.standard_normal((batch, NUM_TOKENS, 32), dtype=np.float32),
    }
    session = onnxruntime.InferenceSession(bundle / "graphs" / "unet.onnx")
    unet = UNet2DConditionModel.from_pretrained(controlled / "unet").eval()
    with torch.no_grad():
        expected = unet(*(torch.from_numpy(array) for array in inputs.values())).sample.numpy()
    # float32 sums in another order; the numbers are of order 1
    assert np.abs(session.run(["prediction"], inputs)[0] - expected).max() < 1e-5


def test_tokenizer_gives_the_tokens_of_the_model(controlled: Path, bundle: Path) -> None:
    said = manifest_of(bundle)["tokenizer"]
    tokenizer = Tokenizer.from_file(str(bundle / said["file"]))
    assert tokenizer.padding is None
    assert tokenizer.truncation is None
    expected, _ = load_text_encoder(ModelConfig(base=str(controlled)), "cpu", torch.float32)
    assert tokenizer.get_vocab_size() == said["vocabulary_size"] == len(expected)
    assert tokenizer.encode("breast tumor").ids == expected("breast tumor").input_ids
    assert tokenizer.encode("").ids == [said["bos"], said["eos"]]


def test_image_in_parity_is_that_of_the_projects_own_sampling(plain: Path, tmp_path: Path) -> None:
    """The reference image is the one that models.sampling draws from the same noise."""
    from diffusers import StableDiffusionPipeline

    export(str(plain), tmp_path / "bundle", "onnx")
    with np.load(tmp_path / "bundle" / "parity.npz", allow_pickle=False) as found:
        arrays = dict(found)
    pipeline = StableDiffusionPipeline.from_pretrained(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.sampling._noise", lambda seed, shape: torch.from_numpy(arrays["noise"][0]))
        images = sample(pipeline, [str(arrays["image_prompt"])], [0], SamplingConfig(steps=int(arrays["image_steps"])))
    assert np.abs(images[0].astype(int) - arrays["image"].astype(int)).max() <= 1  # batches differ in rounding


def test_parity_holds_what_a_selftest_needs(bundle: Path) -> None:
    with np.load(bundle / "parity.npz", allow_pickle=False) as found:
        arrays = dict(found)
    assert arrays["tokens"].dtype == np.int64
    assert arrays["hint"].shape == (1, 3, 64, 64)
    assert arrays["image"].shape == (64, 64, 3)
    assert np.unique(arrays["image_mask"]).tolist() == [0, 1, 2]
    assert np.abs(arrays["prediction_with_control"] - arrays["prediction"]).max() > 1e-3, (
        "the ControlNet does something"
    )


def test_errors_grow_as_precision_falls(bundle: Path, half_bundle: Path, byte_bundle: Path) -> None:
    told = [manifest_of(folder)["parity"] for folder in (bundle, half_bundle, byte_bundle)]
    keys = ("text", "prediction", "prediction_with_control", "latents", "image_levels_mean")
    for key in keys:
        full, half, byte = (one["errors"][key] for one in told)
        assert full < half < byte
    for one in told:
        assert one["errors"].keys() == one["limits"].keys() == {*keys, "image_levels"}
        assert all(one["errors"][key] <= one["limits"][key] for key in one["limits"])
    # whole grey levels: no precision of this small model is out by more than one
    assert all(one["errors"]["image_levels"] <= 1 for one in told)
    assert [one["limits"]["image_levels"] for one in told] == [2, 4, 24]
    sizes = [(folder / "graphs" / "unet.safetensors").stat().st_size for folder in (bundle, half_bundle, byte_bundle)]
    assert sizes[0] > 1.8 * sizes[1]
    assert sizes[1] > 1.3 * sizes[2]


def test_each_precision_tells_its_errors_on_the_card_and_in_the_terminal(
    bundle: Path, half_bundle: Path, byte_bundle: Path
) -> None:
    for folder in (bundle, half_bundle, byte_bundle):
        said = manifest_of(folder)["parity"]
        card = (folder / "MODEL_CARD.md").read_text()
        lines = parity_table(parity.Parity(said["errors"], said["limits"])).splitlines()
        assert len(lines) == 1 + len(said["errors"])
        for line, (key, label) in zip(lines[1:], LABELS.items(), strict=True):
            error, limit = f"{said['errors'][key]:.2g}", f"{said['limits'][key]:.2g}"
            assert f"| {label} | {error} | {limit} |" in card
            assert line.startswith(label)
            assert line.split()[-2:] == [error, limit]


def test_a_hint_has_the_colours_of_the_bundle(controlled: Path, tmp_path: Path) -> None:
    """Of a ControlNet that was trained elsewhere: its colours are not those of this project's own palette."""
    shutil.copytree(controlled, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "sonoshard.json").read_text())
    record["hint_colours"] |= {"background": [9, 8, 7], "lesion": [1, 255, 3]}
    (tmp_path / "model" / "sonoshard.json").write_text(json.dumps(record))
    export(str(tmp_path / "model"), tmp_path / "bundle", "onnx")
    with np.load(tmp_path / "bundle" / "parity.npz", allow_pickle=False) as found:
        levels = np.moveaxis(np.rint(255 * found["hint"][0]), 0, -1)
        assert np.unique(levels[found["image_mask"] == 1], axis=0).tolist() == [[1, 255, 3]]
    with open_bundle(tmp_path / "bundle") as opened:
        checks = run_selftest(opened)
    assert all(check.is_kept for check in checks), table(checks)


def test_nothing_in_a_bundle_is_a_pickle(bundle: Path) -> None:
    paths = [path for path in bundle.rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} <= {".json", ".onnx", ".safetensors", ".npz", ".md", ".py", ".html"}
    contents = [path.read_bytes() for path in paths]
    with zipfile.ZipFile(bundle / "parity.npz") as archive:
        contents += [archive.read(name) for name in archive.namelist()]
    # a pickle begins with its protocol, 0x80 and 2 to 5; torch's own file is a zip with data.pkl in it
    assert not [content[:8] for content in contents if content[:1] == b"\x80" and content[1:2] in b"\2\3\4\5"]
    assert not [content[:8] for content in contents if b"data.pkl" in content]


def test_a_merge_is_exported(plain: Path, tmp_path: Path) -> None:
    merged = CliRunner().invoke(
        app, ["merge", str(tmp_path / "merged"), str(plain), str(plain), "--method", "weighted"]
    )
    assert merged.exit_code == 0, merged.stderr
    export(str(tmp_path / "merged"), tmp_path / "bundle", "onnx")
    assert "merge" in manifest_of(tmp_path / "bundle")["parents"][0]
    with open_bundle(tmp_path / "bundle") as opened:
        assert all(check.is_kept for check in run_selftest(opened))


def test_a_bundle_that_is_not_near_torch_is_not_written(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(file: Path, tensors: dict[str, torch.Tensor], precision: Any) -> Any:
        if file.stem == "unet":
            tensors = tensors | {"conv_out.bias": tensors["conv_out.bias"] + 0.01}
        return write_weights(file, tensors, precision)

    monkeypatch.setattr("tools.export.bundle.write_weights", faulty)
    out = tmp_path / "new" / "bundle"
    with pytest.raises(ModelError, match=r"plain: .* \(prediction differs by 0\.01, at most .*nothing was written"):
        export(str(plain), out, "onnx")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("error", [float("nan"), 1.0])
def test_parity_refuses_what_is_no_number_too(error: float) -> None:
    with pytest.raises(ModelError, match="text differs by"):
        parity.Parity({"text": error}, {"text": 0.5}).refuse("model")


def test_the_same_bundle_again_and_as_a_zip(controlled: Path, bundle: Path, tmp_path: Path) -> None:
    export(str(controlled), tmp_path / "one.zip", "onnx")
    shutil.copy(tmp_path / "one.zip", tmp_path / "kept")
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(files_of(bundle), key=Path)
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        archive.extractall(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(bundle)


def test_a_controlnet_of_unknown_colours_is_refused(controlled: Path, tmp_path: Path) -> None:
    shutil.copytree(controlled, tmp_path / "model")
    (tmp_path / "model" / "sonoshard.json").write_text('{"steps": 3}')
    with pytest.raises(ModelError, match=r"and no sonoshard\.json that says what the colours of its masks mean"):
        export(str(tmp_path / "model"), tmp_path / "bundle", "onnx")
    assert not (tmp_path / "bundle").exists()


def test_verify_finds_a_flipped_byte(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    assert CliRunner().invoke(app, ["verify", str(copy)]).exit_code == 0
    weights = copy / "graphs" / "vae_decoder.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 16
    weights.write_bytes(content)
    (copy / "tokenizer.json").unlink()
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert result.exit_code == 1
    assert f"{weights} is not what was exported: copy the bundle again" in result.stdout
    assert f"{copy / 'tokenizer.json'} is missing" in result.stdout
    assert result.stdout.count("DAMAGED") == 2
