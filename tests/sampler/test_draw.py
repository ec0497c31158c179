"""Images against diffusers on torch, from the same noise; and what a seed stands for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from data.hints import CLASS_COLOURS
from models import sampling
from models.base import ModelConfig
from models.sampling import Sampler, SamplingConfig, sample
from models.stable_diffusion import load_pipeline
from sampler.bundle import Bundle, open_bundle
from sampler.draw import Drawer, Settings, Wish, guided
from sampler.errors import SamplerError
from sampler.noise import noise
from sampler.selftest import run_selftest, table
from tests.sampler.conftest import Changed, rewrite_hashes
from tools.export.export import export
from tools.export.stored_weights import Precision

PROMPTS = ("simulated breast ultrasound, benign", "simulated fetal ultrasound, head")
SEEDS = (3, 2**40)
SEED_ZERO = [0.1585338, -1.925692, -0.2025033, 2.9828794, -0.8249255]
SETTINGS = Settings("dpmsolver++", 3, 5.0, 0.0)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline(ModelConfig(base="tiny"), "cpu", torch.float32)


@pytest.mark.parametrize(
    ("solver", "guidance", "rescale"), [("dpmsolver++", 5.0, 0.0), ("dpmsolver++", 4.0, 0.7), ("ddim", 1.0, 0.0)]
)
def test_images_are_those_of_torch_from_the_same_noise(
    drawer: Drawer,
    pipeline: StableDiffusionPipeline,
    monkeypatch: pytest.MonkeyPatch,
    solver: Sampler,
    guidance: float,
    rescale: float,
) -> None:
    monkeypatch.setattr(sampling, "_noise", lambda seed, shape: torch.from_numpy(noise(seed, shape)))
    settings = SamplingConfig(sampler=solver, steps=6, guidance=guidance, guidance_rescale=rescale)
    theirs = sample(pipeline, PROMPTS, SEEDS, settings).astype(int)
    wishes = [Wish(prompt, "", seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    ours = drawer.draw(wishes, Settings(solver, 6, guidance, rescale))
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs).max() <= 2
    assert ours.std() > 10, "an image, not a grey square"


@pytest.mark.parametrize("solver", ["unipc", "dpmsolver++", "ddim"])
def test_images_are_those_of_diffusers_own_pipeline(
    control_drawer: Drawer, trained: Path, pipeline: StableDiffusionPipeline, solver: str
) -> None:
    """With a negative prompt, with and without a mask: nothing of this project draws the other image."""
    config = {**pipeline.scheduler.config, "use_karras_sigmas": True}
    schedulers = {
        "unipc": UniPCMultistepScheduler,
        "dpmsolver++": DPMSolverMultistepScheduler,
        "ddim": DDIMScheduler,
    }
    scheduler = schedulers[solver].from_config(config, clip_sample=False, steps_offset=1)
    controlnet = ControlNetModel.from_pretrained(trained / "control" / "controlnet", local_files_only=True)
    parts = {**pipeline.components, "scheduler": scheduler}
    with_mask = StableDiffusionControlNetPipeline(**parts, controlnet=controlnet, requires_safety_checker=False)
    without_mask = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    mask = np.zeros((128, 128), np.uint8)
    mask[30:70, 40:110] = 1
    latents = torch.from_numpy(noise(SEEDS[0], (4, 16, 16)))[None]
    for numbers in (mask, None):
        asked = {} if numbers is None else {"image": Image.fromarray(np.array(CLASS_COLOURS, np.uint8)[numbers])}
        draw = without_mask if numbers is None else with_mask
        draw.set_progress_bar_config(disable=True)
        theirs = draw(
            PROMPTS[0],
            negative_prompt="malignant",
            num_inference_steps=6,
            guidance_scale=4.0,
            latents=latents,
            output_type="np",
            **asked,
        ).images[0]
        wish = Wish(PROMPTS[0], "malignant", SEEDS[0], numbers)
        ours = control_drawer.draw([wish], Settings(solver, 6, 4.0, 0.0))[0]
        assert np.abs(ours.astype(int) - np.rint(255 * theirs).astype(int)).max() <= 2
        assert ours.std() > 10, "an image, not a grey square"


def test_picture_of_a_seed_does_not_depend_on_its_batch(drawer: Drawer) -> None:
    wishes = [Wish(PROMPTS[0], "", seed) for seed in (5, 6, 7)]
    together = drawer.draw(wishes, SETTINGS).astype(int)
    alone = np.concatenate([drawer.draw([wish], SETTINGS) for wish in wishes])
    # one grey level: sums of another batch size round otherwise
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together[0] - together[1]).mean() > 5, "another seed, another picture"


def test_noise_is_normal_and_never_changes() -> None:
    values = noise(7, (4, 100, 101))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    # what the seed 0 stands for in every set that was ever drawn
    assert np.allclose(noise(0, (5,)), SEED_ZERO, atol=1e-6)
    assert np.array_equal(noise(7, (4, 100, 101)), values)
    assert not np.array_equal(noise(8, (4, 100, 101)), values)


def test_negative_prompt_and_mask_change_the_picture(drawer: Drawer, control_drawer: Drawer) -> None:
    plain = drawer.draw([Wish(PROMPTS[0], "", 1)], SETTINGS)
    assert not np.array_equal(plain, drawer.draw([Wish(PROMPTS[0], "malignant", 1)], SETTINGS))
    # without guidance nothing is kept away from, and the UNet is asked once
    one = Settings("unipc", 3, 1.0, 0.0)
    assert np.array_equal(
        drawer.draw([Wish(PROMPTS[0], "", 1)], one), drawer.draw([Wish(PROMPTS[0], "malignant", 1)], one)
    )
    masks = [np.zeros((128, 128), np.uint8), np.ones((128, 128), np.uint8)]
    steered = control_drawer.draw([Wish(PROMPTS[0], "", 1, mask) for mask in masks], SETTINGS)
    assert not np.array_equal(steered[0], steered[1])
    assert control_drawer.draw([Wish(PROMPTS[0], "", 1)], SETTINGS).shape == (1, 128, 128, 3)


def test_guidance_is_that_of_models() -> None:
    one, other = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8), dtype=np.float32)
    for rescale in (0.0, 0.7, 1.0):
        theirs = sampling.guided(torch.from_numpy(one), torch.from_numpy(other), 5.0, rescale).numpy()
        assert np.abs(guided(one, other, 5.0, rescale) - theirs).max() < 1e-5


def test_progress_tells_each_step_and_may_stop(drawer: Drawer) -> None:
    told: list[tuple[int, int]] = []

    def progress(step: int, steps: int) -> None:
        told.append((step, steps))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawer.draw([Wish("", "", 0)], SETTINGS, progress)
    assert told == [(1, 3), (2, 3)]


def test_selftest_finds_this_machine_to_be_as_torch(opened: Bundle, control_bundle: Path) -> None:
    checks = run_selftest(opened)
    assert [check.name for check in checks] == ["text", "prediction", "latents", "image_levels", "image_levels_mean"]
    assert all(check.is_kept for check in checks), table(checks)
    with open_bundle(control_bundle) as control:
        checks = run_selftest(control)
    assert "prediction_with_control" in {check.name for check in checks}
    assert all(check.is_kept for check in checks), table(checks)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_weights_stored_in_fewer_bits(trained: Path, tmp_path: Path, precision: Precision) -> None:
    export(str(trained / "control"), tmp_path / precision, "onnx", precision=precision)
    with open_bundle(tmp_path / precision) as bundle:
        checks = run_selftest(bundle)
    assert all(check.is_kept for check in checks), table(checks)
    assert max(check.error for check in checks) > 1e-4, "the bits that were left out are missed"


def test_weights_that_are_not_those_of_the_selftest(changed: Changed) -> None:
    def swap(folder: Path) -> None:
        path = folder / "graphs" / "unet.safetensors"
        content = bytearray(path.read_bytes())
        content[-400_000:] = bytes(400_000)
        path.write_bytes(content)
        rewrite_hashes(folder)

    with open_bundle(changed(swap)) as bundle:
        checks = run_selftest(bundle)
    assert not all(check.is_kept for check in checks)
    assert "TOO LARGE" in table(checks)


def test_a_graph_that_onnxruntime_cannot_open(changed: Changed) -> None:
    def spoil(folder: Path) -> None:
        (folder / "graphs" / "unet.onnx").write_bytes(b"no graph")
        rewrite_hashes(folder)

    with open_bundle(changed(spoil)) as bundle, pytest.raises(SamplerError, match=r"cannot open graphs/unet.onnx"):
        Drawer(bundle).draw([Wish("", "", 0)], SETTINGS)
