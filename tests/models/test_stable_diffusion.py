"""Loading: every layout, every part alone, without a network; and what a user is told when it fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

import models.base
from models.base import ModelConfig, locate, noise_schedule, resolution_of
from models.errors import ModelError
from models.single_file import save_single_file
from models.stable_diffusion import (
    encoder_fingerprint,
    load_encoder,
    load_pipeline,
    load_text_encoder,
    load_unet,
    load_vae,
    unet_sha256,
)
from tests.tiny_random_model import write_tiny_random_model

HUB_ID = "some-org/ultrasound.sd-1"


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def cached_model(folder: Path, hub_cache: Path) -> Path:
    """The random model as `hf download` leaves it: refs/main names a snapshot."""
    repository = hub_cache / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


# Where a base is found


def test_a_folder_and_a_file_are_found_by_path(folder: Path, single_file: Path) -> None:
    assert locate(str(folder)) == folder
    assert locate(str(single_file)) == single_file


def test_a_name_is_a_folder_in_models(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.base.BUILT_IN", folder.parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder.name).mkdir()  # a folder of that name here does not shadow it
    assert locate(folder.name) == folder
    with pytest.raises(ModelError, match=rf"base 'nano' was not found: .*come with SonoShard \({folder.name}\)"):
        locate("nano")


def test_a_hub_id_is_found_in_the_cache(cached_model: Path) -> None:
    assert locate(HUB_ID) == cached_model


def test_a_hub_id_outside_the_cache_names_the_command(hub_cache: Path) -> None:
    with pytest.raises(ModelError, match=rf"not in the cache .*{hub_cache.name}.* run: hf download {HUB_ID} --include"):
        locate(HUB_ID)


def test_half_a_download_names_the_command(cached_model: Path) -> None:
    (cached_model / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=rf"vae/config\.json is missing; .* run: hf download {HUB_ID}"):
        resolution_of(ModelConfig(base=HUB_ID))


def test_the_command_fetches_what_is_needed_and_no_pickles(folder: Path) -> None:
    from fnmatch import fnmatch

    needed = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    unwanted = ["unet/diffusion_pytorch_model.bin", "v1-5-pruned.safetensors", "safety_checker/model.safetensors"]
    patterns = models.base.HUB_FILES
    assert [name for name in needed if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [name for name in unwanted if any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_nothing_reaches_for_the_network(cached_model: Path, hub_cache: Path) -> None:
    """In a process of its own, as the environment is read at import: HF_HOME is fake, and every socket is refused."""
    script = (
        "import socket, torch\n"
        "def refuse(*arguments, **keywords): raise AssertionError('a network was asked')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from models.base import ModelConfig\nfrom models.stable_diffusion import load_pipeline\n"
        f"load_pipeline(ModelConfig(base={HUB_ID!r}), 'cpu', torch.float32)\n"
    )
    (hub_cache.parent / "home").mkdir()
    hub_cache.rename(hub_cache.parent / "home" / "hub")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_HOME": str(hub_cache.parent / "home")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=Path(__file__).parents[2])


# What is loaded


def test_parts_are_those_of_diffusers(folder: Path, config: ModelConfig) -> None:
    expected = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    ours = load_pipeline(config, "cpu", torch.float32)
    assert ours.safety_checker is None
    assert type(ours.scheduler) is type(expected.scheduler)
    assert dict(ours.scheduler.config) == dict(expected.scheduler.config)
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(expected, part).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(ours, part).state_dict().items())
    assert not any(parameter.requires_grad for parameter in ours.vae.parameters())
    assert not any(parameter.requires_grad for parameter in ours.text_encoder.parameters())


def test_a_fine_tuned_unet_takes_the_place_of_the_bases(config: ModelConfig) -> None:
    unet = load_unet(config, torch.float32)
    assert load_pipeline(config, "cpu", torch.float32, unet=unet).unet is unet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_stored_as_float16_come_in_the_dtype_asked(half_folder: Path, dtype: torch.dtype) -> None:
    half = ModelConfig(base=str(half_folder))
    assert load_unet(half, dtype).dtype == dtype
    assert load_vae(half, "cpu", dtype).dtype == dtype
    assert load_text_encoder(half, "cpu", dtype)[1].dtype == dtype


def test_the_float16_twin_is_taken_where_it_is_alone(broken: Path, config: ModelConfig) -> None:
    for file in broken.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    unet = load_unet(ModelConfig(base=str(broken)), torch.float32)
    assert torch.equal(unet.conv_in.weight, load_unet(config, torch.float32).conv_in.weight)


def test_weights_in_shards_are_read(broken: Path, config: ModelConfig) -> None:
    for part, model_class in (("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        model = model_class.from_pretrained(broken / part)
        for file in (broken / part).glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(broken / part, max_shard_size="60KB")
        assert len(list((broken / part).glob("*.safetensors"))) > 1
    assert encoder_fingerprint(ModelConfig(base=str(broken))) == encoder_fingerprint(config)
    next((broken / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"names \d files, of which .* is missing; copy it again"):
        load_vae(ModelConfig(base=str(broken)), "cpu", torch.float32)


def test_attention_names_of_before_2023_are_known(broken: Path, config: ModelConfig, single_file: Path) -> None:
    """The VAE of SD 1.5 on the hub still has them."""
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, old in names.items():
        tensors = {key.replace(new, old): value for key, value in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
    old_config = ModelConfig(base=str(broken))
    ours, theirs = (load_vae(base, "cpu", torch.float32).state_dict() for base in (old_config, config))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert encoder_fingerprint(old_config) == encoder_fingerprint(config)
    again, first = load_file(save_single_file(broken, broken / "again.safetensors")), load_file(single_file)
    assert all(torch.equal(again[key], value) for key, value in first.items())


def test_gradient_checkpointing_is_a_setting(config: ModelConfig) -> None:
    assert not load_unet(config, torch.float32).is_gradient_checkpointing
    checkpointed = load_unet(config.model_copy(update={"gradient_checkpointing": True}), torch.float32)
    assert checkpointed.is_gradient_checkpointing
    assert checkpointed.training


@pytest.mark.parametrize("setting", [{"gradient_checkpointing": True}, {"attention": "eager"}, {"channels_last": True}])
def test_settings_for_training_change_neither_loss_nor_names(config: ModelConfig, setting: dict[str, object]) -> None:
    default, changed = (load_unet(config.model_copy(update=update), torch.float32) for update in ({}, setting))
    assert list(changed.state_dict()) == list(default.state_dict())
    torch.manual_seed(0)
    latents, timesteps, text = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 8, 32)
    losses = [unet(latents, timesteps, text).sample.square().mean() for unet in (default, changed)]
    for loss in losses:
        loss.backward()
    # The same sums in another order: some float32 roundings (1.2e-7) of the largest value.
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for (name, expected), parameter in zip(default.named_parameters(), changed.parameters(), strict=True):
        difference = (parameter.grad - expected.grad).norm() / expected.grad.norm().clamp(min=1e-6)
        assert difference < 1e-4, name


def test_attention_is_a_setting(config: ModelConfig) -> None:
    processors = {
        attention: {type(p).__name__ for p in load_unet(changed, torch.float32).attn_processors.values()}
        for attention, changed in ((a, config.model_copy(update={"attention": a})) for a in ("sdpa", "eager"))
    }
    assert processors == {"sdpa": {"AttnProcessor2_0"}, "eager": {"AttnProcessor"}}


def test_channels_last_is_a_setting(config: ModelConfig) -> None:
    seen = {}
    for is_last in (False, True):
        unet = load_unet(config.model_copy(update={"channels_last": is_last}), torch.float32)
        inner = unet.down_blocks[0].resnets[0].conv1
        inner.register_forward_hook(
            lambda _, inputs, __, key=is_last: seen.update(
                {key: inputs[0].is_contiguous(memory_format=torch.channels_last)}
            )
        )
        unet(torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 8, 32))
        assert all(parameter.is_contiguous() for parameter in unet.parameters()), "ZeRO flattens them"
    assert seen == {False: False, True: True}


def test_compile_is_in_place_and_for_training(config: ModelConfig) -> None:
    compiled = config.model_copy(update={"compile": True})
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    unet = load_unet(compiled, torch.float32)
    assert unet._compiled_call_impl is not None
    assert list(unet.state_dict()) == list(load_unet(config, torch.float32).state_dict())
    assert load_pipeline(compiled, "cpu", torch.float32).unet._compiled_call_impl is None, "it draws without"


@pytest.mark.parametrize(
    ("has_gpu", "found"), [(False, r"g\+\+ is not in PATH"), (True, "gcc or clang is not in PATH")]
)
def test_compile_without_a_compiler_is_refused(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_gpu: bool, found: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    with pytest.raises(
        ModelError, match=rf"model\.compile needs a compiler, and {found}: .*or set model\.compile=false"
    ):
        load_unet(config.model_copy(update={"compile": True}), torch.float32)
    monkeypatch.setenv("CC", "no-such-cc")
    monkeypatch.setenv("CXX", "no-such-cxx")
    with pytest.raises(ModelError, match=r"no-such-c.* is not in PATH"):
        load_unet(config.model_copy(update={"compile": True}), torch.float32)


def test_v_prediction_comes_from_the_base_or_the_setting(tmp_path: Path, config: ModelConfig) -> None:
    velocity = ModelConfig(base=str(write_tiny_random_model(tmp_path / "v", prediction_type="v_prediction")))
    assert noise_schedule(velocity).prediction_type == "v_prediction"
    assert noise_schedule(config).prediction_type == "epsilon"
    changed = config.model_copy(update={"prediction_type": "v_prediction"})
    assert noise_schedule(changed).prediction_type == "v_prediction"
    pipeline = load_pipeline(changed, "cpu", torch.float32)
    assert pipeline.scheduler.config.prediction_type == "v_prediction", "what is exported must say so"
    # A single file says it of itself, and knows better than the folder that its architecture is taken from.
    file = save_single_file(tmp_path / "v", tmp_path / "v.safetensors")
    packed = ModelConfig(base=str(file), single_file_config=config.base)
    assert noise_schedule(packed).prediction_type == "v_prediction"
    assert load_pipeline(packed, "cpu", torch.float32).scheduler.config.prediction_type == "v_prediction"
    assert noise_schedule(packed.model_copy(update={"prediction_type": "epsilon"})).prediction_type == "epsilon"


def test_scaling_factor_is_the_vaes(config: ModelConfig, broken: Path) -> None:
    assert noise_schedule(config).scaling_factor == 0.5
    file = broken / "vae" / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "scaling_factor"}))
    assert noise_schedule(ModelConfig(base=str(broken))).scaling_factor == 0.18215


# The encoder


def test_moments_are_those_of_the_vae(config: ModelConfig) -> None:
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    encoder = load_encoder(config, "cpu", torch.float32)
    with torch.no_grad():
        latents = load_vae(config, "cpu", torch.float32).encode(images).latent_dist
    moments = encoder.moments(images)
    assert moments.shape == (3, 8, 8, 8)
    assert moments.dtype == torch.float32
    assert torch.equal(moments[:, :4], latents.mean)
    torch.testing.assert_close((moments[:, 4:] / 2).exp(), latents.std)
    assert load_encoder(config, "cpu", torch.bfloat16).moments(images).dtype == torch.float32


def test_embeddings_are_those_of_the_pipeline(config: ModelConfig) -> None:
    prompts = ["breast tumor", "", "a prompt far longer than the tokens that there are"]
    text = load_encoder(config, "cpu", torch.float32).embed(prompts)
    pipeline = load_pipeline(config, "cpu", torch.float32)
    expected, _ = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
    assert text.shape == (3, 8, 32)
    assert text.dtype == torch.float32
    assert torch.equal(text, expected)


def test_fingerprint_is_of_values(folder: Path, half_folder: Path, config: ModelConfig, tmp_path: Path) -> None:
    fingerprint = encoder_fingerprint(config)
    assert fingerprint.keys() == {"vae", "text_encoder", "tokenizer", "scaling_factor", "diffusers", "transformers"}
    assert load_encoder(config, "cpu", torch.float32).fingerprint == fingerprint
    # Saved again by other hands: the tokenizer then has another layout, with what was asked of it last.
    pipeline = load_pipeline(config, "cpu", torch.float32)
    pipeline.encode_prompt("tumor", "cpu", 1, do_classifier_free_guidance=False)
    pipeline.save_pretrained(tmp_path / "saved")
    assert encoder_fingerprint(ModelConfig(base=str(tmp_path / "saved"))) == fingerprint
    # float16 lost digits once; what it holds is the same in either layout and dtype
    half = encoder_fingerprint(ModelConfig(base=str(half_folder)))
    assert half["vae"] != fingerprint["vae"]
    single = save_single_file(half_folder, tmp_path / "half.safetensors")
    file_config = ModelConfig(base=str(single), single_file_config=str(folder))
    assert encoder_fingerprint(file_config) == half
    assert unet_sha256(file_config) == unet_sha256(ModelConfig(base=str(half_folder))) != unet_sha256(config)
    load_pipeline(ModelConfig(base=str(half_folder)), "cpu", torch.float32).save_pretrained(tmp_path / "wide")
    assert encoder_fingerprint(ModelConfig(base=str(tmp_path / "wide"))) == half


@pytest.mark.parametrize("changed", ["vae", "text_encoder", "tokenizer", "scaling_factor"])
def test_fingerprint_tells_what_changed(config: ModelConfig, broken: Path, changed: str) -> None:
    if changed == "scaling_factor":
        edit_json(broken / "vae" / "config.json", scaling_factor=0.25)
    elif changed == "tokenizer":
        merges = broken / "tokenizer" / "merges.txt"
        merges.write_text("\n".join(merges.read_text().splitlines()[:-1]))
    else:
        file = next((broken / changed).glob("*.safetensors"))
        tensors = load_file(file)
        name = sorted(tensors)[0]
        tensors[name].view(-1)[0] += 1e-3
        save_file(tensors, file, {"format": "pt"})
    before, after = encoder_fingerprint(config), encoder_fingerprint(ModelConfig(base=str(broken)))
    assert [key for key in before if before[key] != after[key]] == [changed]


# Sizes


def test_resolution_is_the_setting_or_the_bases(config: ModelConfig) -> None:
    assert resolution_of(config) == 64
    assert resolution_of(config.model_copy(update={"resolution": 128})) == 128


def test_resolution_must_be_whole_latents(config: ModelConfig) -> None:
    with pytest.raises(ModelError, match=r"model\.resolution=100 is not a multiple of 8.*nearest that work: 96, 104"):
        resolution_of(config.model_copy(update={"resolution": 100}))


# What is refused


def test_pickles_are_refused(broken: Path) -> None:
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"only pickled weights \(diffusion_pytorch_model\.bin\), which can run code"):
        load_unet(ModelConfig(base=str(broken)), torch.float32)


def test_a_pickled_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"never read")
    with pytest.raises(ModelError, match=r"is a \.ckpt file, which is never opened; a \.safetensors is needed"):
        locate(str(tmp_path / "model.ckpt"))


def test_missing_weights_are_named(broken: Path) -> None:
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"vae holds no diffusion_pytorch_model\.safetensors; the folder is incomplete"
    ):
        load_vae(ModelConfig(base=str(broken)), "cpu", torch.float32)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_lack_a_tensor_are_refused(broken: Path, part: str) -> None:
    file = next((broken / part).glob("*.safetensors"))
    tensors = load_file(file)
    lost = sorted(tensors)[-1]
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{part} lacks 1 of its tensors \(the first: {lost}\)"):
        load_pipeline(ModelConfig(base=str(broken)), "cpu", torch.float32)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model_index\.json, so it is no diffusers folder"):
        resolution_of(ModelConfig(base=str(tmp_path)))


def test_another_kind_of_model_is_refused(broken: Path) -> None:
    edit_json(
        broken / "model_index.json", _class_name="StableDiffusionXLPipeline", text_encoder_2=["transformers", "T"]
    )
    with pytest.raises(ModelError, match=r"is a StableDiffusionXLPipeline .*Stable Diffusion 1 or 2 is needed"):
        load_unet(ModelConfig(base=str(broken)), torch.float32)
    edit_json(broken / "model_index.json", _class_name="FluxPipeline", unet=None)
    with pytest.raises(ModelError, match="is a FluxPipeline without unet"):
        load_unet(ModelConfig(base=str(broken)), torch.float32)


def test_an_inpainting_model_is_refused(broken: Path) -> None:
    edit_json(broken / "unet" / "config.json", in_channels=9)
    with pytest.raises(ModelError, match=r"UNet of 9 channels for 4 latent channels\); a text-to-image model"):
        load_unet(ModelConfig(base=str(broken)), torch.float32)


def test_a_vae_of_another_reduction_is_refused(broken: Path) -> None:
    edit_json(broken / "vae" / "config.json", block_out_channels=[8, 8, 16])
    needed = r"one latent covers 4 x 4 pixels, needed 8 x 8: give a model with a VAE of Stable Diffusion 1 or 2"
    with pytest.raises(ModelError, match=needed):
        resolution_of(ModelConfig(base=str(broken)))


def test_a_tokenizer_of_another_model_is_refused(broken: Path) -> None:
    # Without its files CLIPTokenizer is silently one of two words.
    (broken / "tokenizer" / "vocab.json").unlink()
    (broken / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"tokenizer has \d tokens and the text encoder 523; vocab\.json and merges"):
        load_encoder(ModelConfig(base=str(broken)), "cpu", torch.float32)


def test_a_single_file_needs_a_config(single_file: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"is a single file, .* set model\.single_file_config to the diffusers folder"):
        load_unet(ModelConfig(base=str(single_file)), torch.float32)
    with pytest.raises(ModelError, match="is a file; a diffusers folder is needed"):
        load_unet(ModelConfig(base=str(single_file), single_file_config=str(single_file)), torch.float32)
    with pytest.warns(UserWarning, match=r"single_file_config is ignored: base .* is no single file"):
        load_unet(ModelConfig(base=str(folder), single_file_config=str(folder)), torch.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"base": ""},
        {"base": "tiny", "resolution": 0},
        {"base": "tiny", "prediction_type": "sample"},
        {"bas": "tiny"},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(settings)


# Light


def test_configs_import_without_torch() -> None:
    script = (
        "import sys, models.stable_diffusion, models.objective, models.sampling, models.schedule, models.single_file\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'huggingface_hub'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_encoding_loads_no_unet_and_training_no_vae(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers
    import transformers

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a part was loaded that is not needed")

    with monkeypatch.context() as patched:
        patched.setattr(diffusers.UNet2DConditionModel, "from_pretrained", refuse)
        load_encoder(config, "cpu", torch.float32)
    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", refuse)
    monkeypatch.setattr(transformers.CLIPTextModel, "from_pretrained", refuse)
    load_unet(config, torch.float32)
    noise_schedule(config)
    encoder_fingerprint(config)


def test_after_the_imports_networks_are_loaded_and_drawn_from_without_more(folder: Path) -> None:
    """Ranks import side by side beforehand; what one of them imports later the others wait for."""
    script = (
        "import sys, torch\n"
        "from models.base import ModelConfig, noise_schedule\n"
        "from models.sampling import make_solver\n"
        "from models.stable_diffusion import import_libraries, load_unet, load_vae\n"
        "import_libraries()\n"
        "before = set(sys.modules)\n"
        f"config = ModelConfig(base={str(folder)!r})\n"
        "load_unet(config, torch.float32)(torch.zeros(1, 4, 8, 8), 0, torch.zeros(1, 4, 32))\n"
        "load_vae(config, 'cpu', torch.float32)\n"
        "make_solver(noise_schedule(config), 'dpmsolver++')\n"
        "late = [name.partition('.')[0] for name in sys.modules.keys() - before]\n"
        "print({name: late.count(name) for name in set(late) if late.count(name) > 30})\n"
    )
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == "{}", "packages of which so many modules were imported late"
