"""ControlNet: new ones change nothing, the UNet stays frozen, and a saved one is diffusers' own pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from torch import Tensor

from data.hints import hint_images
from models.base import ModelConfig, noise_schedule
from models.controlnet import (
    ControlledUnet,
    empty_controlnet,
    has_controlnet,
    load_control_pipeline,
    load_controlnet,
    load_frozen_unet,
)
from models.objective import ObjectiveConfig, denoising_loss
from models.sampling import SamplingConfig, make_solver, sample
from models.saving import save_pipeline

PROMPTS, SEEDS, STEPS = ["breast tumor", "tumor"], [7, 8], 4
SETTINGS = SamplingConfig(steps=STEPS)


@pytest.fixture
def controlled(config: ModelConfig) -> ControlledUnet:
    unet = load_frozen_unet(config, torch.float32)
    return ControlledUnet(unet, load_controlnet(config, torch.float32, seed=3))


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noisy, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 8, 32)))
    return noisy, torch.tensor([10, 900]), text, hints()


def hints() -> Tensor:
    numbers = np.zeros((2, 64, 64), dtype=np.uint8)
    numbers[0, 20:40, 10:50] = 1
    return torch.from_numpy(hint_images(numbers))


def move(controlnet: torch.nn.Module) -> None:
    """Give the convolutions that begin at 0 other values, so that a hint changes something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in controlnet.parameters():
            if not parameter.any():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def test_a_new_controlnet_changes_nothing_yet(controlled: ControlledUnet) -> None:
    noisy, timesteps, text, hint = inputs()
    plain = controlled.unet(noisy, timesteps, text).sample
    assert torch.equal(controlled(noisy, timesteps, text, hint).sample, plain)
    move(controlled.controlnet)
    steered = controlled(noisy, timesteps, text, hint).sample
    assert not torch.allclose(steered, plain, atol=1e-3)
    assert not torch.allclose(controlled(noisy, timesteps, text, 1 - hint).sample, steered, atol=1e-4)


def test_its_seed_decides_on_what_is_not_copied(config: ModelConfig) -> None:
    one, same, other = (load_controlnet(config, torch.float32, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    differing = {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}
    assert differing == {"controlnet_cond_embedding"}


@pytest.mark.parametrize("is_checkpointing", [False, True])
def test_gradients_reach_the_controlnet_alone(config: ModelConfig, is_checkpointing: bool) -> None:
    config = config.model_copy(update={"gradient_checkpointing": is_checkpointing})
    controlnet = load_controlnet(config, torch.float32, seed=3)
    move(controlnet)
    controlled = ControlledUnet(load_frozen_unet(config, torch.float32), controlnet)
    noise, timesteps, text, hint = inputs()
    loss = denoising_loss(
        controlled.train(), noise_schedule(config), ObjectiveConfig(), noise * 0.5, noise, timesteps, text, hint
    )
    loss.mean().backward()
    assert all(parameter.grad is not None for parameter in controlnet.parameters())
    assert all(parameter.grad is None for parameter in controlled.unet.parameters())


def test_a_saved_one_is_diffusers_own_pipeline(config: ModelConfig, tmp_path: Path) -> None:
    controlnet = load_controlnet(config, torch.float32, seed=3)
    move(controlnet)
    assert not has_controlnet(config)
    folder = tmp_path / "model"
    save_pipeline(config, controlnet.state_dict(), folder, {"steps": 1}, network="controlnet")
    saved = ModelConfig(base=str(folder))
    assert has_controlnet(saved)
    assert {name: p.shape for name, p in empty_controlnet(saved).named_parameters()} == {
        name: p.shape for name, p in controlnet.named_parameters()
    }
    again = load_controlnet(saved, torch.float32, seed=99).state_dict()
    assert all(torch.equal(again[name], value) for name, value in controlnet.state_dict().items())

    ours = sample(load_control_pipeline(saved, "cpu", torch.float32), PROMPTS, SEEDS, SETTINGS, hints_N3HW=hints())
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.scheduler = make_solver(noise_schedule(saved), "dpmsolver++")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    theirs = pipeline(
        PROMPTS, image=hints(), latents=noise, num_inference_steps=STEPS, guidance_scale=5.0, output_type="np"
    ).images
    # One grey level for the rounding to 8 bits.
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 1
    moved = sample(load_control_pipeline(saved, "cpu", torch.float32), PROMPTS, SEEDS, SETTINGS, hints_N3HW=1 - hints())
    assert not np.array_equal(ours, moved), "the hint matters"
