"""The program that makes the built-in model, and the model that it made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from launch.training_data import training_of
from models.record import read_record
from tools.make_tiny.autoencoder import as_pixels, decode, encode, latent_statistics, new_vae, normalise_latents
from tools.make_tiny.captions import TEMPLATES, paraphrases
from tools.make_tiny.denoiser import min_snr_weight, stratified_timesteps
from tools.make_tiny.pace import Average, Pace
from tools.make_tiny.proof import grain, repetition
from tools.make_tiny.recipe import Recipe, RecipeError, TokenizerRecipe, VaeRecipe
from tools.make_tiny.texture import local_log_spectra
from tools.make_tiny.tokenizer import train_tokenizer

BUILT_IN = Path(__file__).parents[2] / "models" / "tiny"
SMALL_VAE = VaeRecipe(block_out_channels=(8, 8, 16, 16), norm_num_groups=4)
needs_built_in = pytest.mark.skipif(not (BUILT_IN / "unet").exists(), reason="models/tiny is not trained yet")


@pytest.mark.slow
def test_all_phases_make_a_folder_that_samples(tmp_path: Path) -> None:
    from tools.make_tiny.__main__ import Phase, main

    overrides = [
        *("images.size=64", "images.num_train=64", "images.num_held_out=24"),
        *("vae.block_out_channels=(8, 8, 16, 16)", "vae.norm_num_groups=4", "vae.critic_channels=8"),
        *("vae.steps=4", "vae.batch_size=2", "vae.critic_counts_from=0.3"),
        *(
            "denoiser.block_out_channels=(16, 16)",
            "denoiser.text_width=16",
            "denoiser.steps=3",
            "denoiser.batch_size=4",
        ),
        *("proof.num_columns=1", "proof.sampling_steps=2"),
    ]
    out, work = tmp_path / "out", tmp_path / "work"
    main(Phase.ALL, overrides, out=out, work=work, device="cpu", time_limit_s=None)

    assert {path.name for path in work.glob("*.png")} == {"reconstructions.png", "samples.png", "prompts.png"}
    assert "no clinical evidence" in (out / "README.md").read_text()
    trained_on = training_of(read_record(out), "tiny")
    assert trained_on.is_simulated
    assert trained_on.databases[0]["images"] == 64
    assert json.loads((out / "training.json").read_text())["denoiser"]["steps"] == 3
    weights = {path.relative_to(out).parts[0] for path in out.rglob("*.safetensors")}
    assert weights == {"text_encoder", "unet", "vae"}
    pipeline = StableDiffusionPipeline.from_pretrained(out, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("Ultrasound image of benign breast", num_inference_steps=2, output_type="np").images
    assert image.shape == (64, 64, 3)
    assert np.ptp(image, axis=-1).max() < 1e-6, "grey images stay grey"


def captions() -> list[str]:
    return [text for preset in TEMPLATES for label in ("normal", "benign") for text in paraphrases(preset, label)]


@pytest.mark.parametrize("text", ["ultrasound image of benign breast", "zzz qx 12", "日本 ünïcode", "a-b, c!"])
def test_any_text_survives_the_tokenizer(text: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(captions(), TokenizerRecipe(), tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_tokenizer_keeps_to_its_size_and_context(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(captions(), TokenizerRecipe(vocab_size=540, context_tokens=16), tmp_path)
    assert len(tokenizer) == len(CLIPTokenizer.from_pretrained(tmp_path)) == 540
    assert len(tokenizer("breast " * 40, padding="max_length", truncation=True)["input_ids"]) == 16
    assert len(json.loads((tmp_path / "vocab.json").read_text())) == 540


def test_a_word_of_the_captions_is_one_token(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(captions(), TokenizerRecipe(), tmp_path)
    assert len(tokenizer("ultrasound image of benign breast")["input_ids"]) == 5 + 2


def test_normalised_latents_reconstruct_as_before() -> None:
    torch.manual_seed(0)
    vae = new_vae(SMALL_VAE, 64).eval()
    images = torch.randint(0, 256, (8, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = decode(vae, encode(vae, as_pixels(images)).mean)
        spread = encode(vae, as_pixels(images)).std / encode(vae, as_pixels(images)).mean.std(
            dim=(0, 2, 3), keepdim=True
        )
        normalise_latents(vae, *latent_statistics(vae, images))
        posterior = encode(vae, as_pixels(images))
        after = decode(vae, posterior.mean)
    # float32 rounding through some twenty convolutions
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        posterior.std / posterior.mean.std(dim=(0, 2, 3), keepdim=True), spread, rtol=1e-3, atol=1e-5
    )
    mean, std = latent_statistics(vae, images)
    scaling = vae.config.scaling_factor
    # two draws from posteriors as wide as an untrained model's, over 512 values a channel
    assert (mean * scaling).abs().max() < 0.25
    assert ((std * scaling) - 1).abs().max() < 0.2


def test_spectra_ignore_where_speckle_lies_and_notice_a_blur() -> None:
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.standard_normal((1, 1, 64, 64), dtype=np.float32)) for _ in range(2))
    blurred = torch.nn.functional.avg_pool2d(other, 3, 1, 1)
    spectra = [local_log_spectra(image, 16, (3, 5)).mean(dim=(0, 1)) for image in (one, other, blurred)]
    assert (spectra[0] - spectra[1]).abs().mean() < 0.3 * (spectra[0] - spectra[2]).abs().mean()


def test_timesteps_cover_the_schedule_evenly() -> None:
    timesteps = stratified_timesteps(100, 1000, torch.device("cpu"))
    assert torch.equal(torch.bincount(timesteps // 10, minlength=100), torch.ones(100, dtype=torch.long))


def test_min_snr_weight_bounds_the_clean_end_only() -> None:
    alpha_bar = torch.tensor([0.999, 5 / 6, 0.5, 0.01])
    expected = torch.tensor([5 / 999, 1.0, 1.0, 1.0])
    torch.testing.assert_close(min_snr_weight(alpha_bar, 5.0), expected, rtol=1e-4, atol=0)


def test_pace_warms_up_and_anneals() -> None:
    pace = Pace("test", steps=100)
    rates = [pace.learning_rate(1.0) for _ in pace]
    assert len(rates) == 100
    assert rates[0] < rates[1] < max(rates)
    assert rates[-1] < 0.02


def test_average_of_a_constant_is_the_constant() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = Average([parameter], decay=0.9)
    parameter.data.fill_(2.0)
    for _ in range(200):
        average.update()
    parameter.data.zero_()
    average.copy_to_parameters()
    torch.testing.assert_close(parameter.data, torch.full((3,), 2.0))


def test_repetition_finds_a_tiled_pattern_and_grain_a_blur() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(60, 200, (32, 128, 128)).astype(np.uint8)
    tiled = noise.copy()
    tiled[:, ::8, :] = 30
    assert repetition(noise) == pytest.approx(1, abs=0.5)
    assert repetition(tiled) > 5
    assert grain(noise.repeat(2, axis=1)) < 0.6 * grain(noise)


def test_overrides_keep_types_and_name_the_nearest_key() -> None:
    recipe = Recipe().with_overrides(["vae.steps=7", "denoiser.learning_rate=1", "vae.block_out_channels=(8, 8)"])
    assert (recipe.vae.steps, recipe.denoiser.learning_rate, recipe.vae.block_out_channels) == (7, 1.0, (8, 8))
    with pytest.raises(RecipeError, match=r"'vae\.stepps'; the nearest to 'stepps' is 'steps'"):
        Recipe().with_overrides(["vae.stepps=7"])
    with pytest.raises(RecipeError, match="give a int"):
        Recipe().with_overrides(["vae.steps=many"])


@needs_built_in
def test_built_in_model_is_small_and_whole() -> None:
    files = [path for path in BUILT_IN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    tokenizer = CLIPTokenizer.from_pretrained(BUILT_IN / "tokenizer")
    config = json.loads((BUILT_IN / "text_encoder" / "config.json").read_text())
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.model_max_length == config["max_position_embeddings"]


@needs_built_in
def test_built_in_model_answers_its_prompts() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(BUILT_IN, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["Ultrasound image of benign breast", "A cardiac ultrasound image"]
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    breast, heart = pipeline(
        prompts, generator=generators, num_inference_steps=20, guidance_scale=3.0, output_type="np"
    ).images
    # A heart is seen through a sector: the upper corners are black. A breast is seen through a whole rectangle.
    assert heart[:24, :24].mean() < 0.05
    assert breast[:24, :24].mean() > 0.1
