"""The objective against its formulas written out, and against diffusers where it has them."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from models.base import ModelConfig, noise_schedule
from models.objective import (
    ObjectiveConfig,
    denoising_loss,
    diffusion_loss,
    min_snr_weight,
    sampled_quantile,
    timesteps_from_quantile,
    velocity_target,
    with_offset,
)
from models.schedule import NoiseSchedule, PredictionType
from models.stable_diffusion import load_unet

DDPM = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
TIMESTEPS = torch.tensor([0, 100, 500, 999])


def schedule_of(prediction_type: PredictionType) -> NoiseSchedule:
    return NoiseSchedule.from_scheduler_config(DDPM.config, scaling_factor=1, prediction_type=prediction_type)


class Constant(nn.Module):
    """A network that answers with one tensor, and remembers what it was asked."""

    def __init__(self, answer: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.answer = answer
        self.parameter = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> SimpleNamespace:
        self.asked = noisy, timesteps, text
        return SimpleNamespace(sample=self.answer.to(noisy.dtype))


def test_velocity_is_that_of_diffusers() -> None:
    latents, noise = torch.randn(2, 4, 4, 8, 8).unbind()
    ours = velocity_target(latents, noise, schedule_of("v_prediction").alpha_bar(TIMESTEPS))
    assert torch.equal(ours, DDPM.get_velocity(latents, noise, TIMESTEPS))


def test_velocity_needs_one_value_a_sample() -> None:
    with pytest.raises(ValueError, match=r"alpha_bar has shape \[3\]; one for each of 2 samples"):
        velocity_target(torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4, 4), torch.ones(3))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_the_formula(prediction_type: PredictionType) -> None:
    latents, noise, answer = torch.randn(3, 4, 4, 8, 8).unbind()
    target = noise if prediction_type == "epsilon" else DDPM.get_velocity(latents, noise, TIMESTEPS)
    # The weights as diffusers' train_text_to_image.py has them.
    snr = compute_snr(DDPM, TIMESTEPS)
    weights = snr.clamp(max=5) / (snr if prediction_type == "epsilon" else snr + 1)
    expected = torch.stack([w * nn.functional.mse_loss(a, b) for w, a, b in zip(weights, answer, target, strict=True)])

    unet, text = Constant(answer), torch.randn(4, 8, 32)
    loss = denoising_loss(unet, schedule_of(prediction_type), ObjectiveConfig(), latents, noise, TIMESTEPS, text)
    assert loss.dtype == torch.float32
    # snr at t = 0 differs in its fourth digit (see test_schedule)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    noisy, timesteps, asked_text = unet.asked
    assert torch.equal(noisy, DDPM.add_noise(latents, noise, TIMESTEPS))
    assert torch.equal(timesteps, TIMESTEPS)
    assert torch.equal(asked_text, text)


def test_without_min_snr_it_is_the_plain_mean() -> None:
    latents, noise, answer = torch.randn(3, 4, 4, 8, 8).unbind()
    config = ObjectiveConfig(min_snr_gamma=None)
    loss = denoising_loss(
        Constant(answer), schedule_of("epsilon"), config, latents, noise, TIMESTEPS, torch.zeros(4, 8, 32)
    )
    torch.testing.assert_close(loss.mean(), nn.functional.mse_loss(answer, noise))


def test_network_runs_in_its_own_dtype_and_the_loss_in_float32() -> None:
    unet = Constant(torch.zeros(4, 4, 8, 8), torch.bfloat16)
    latents, noise = torch.randn(2, 4, 4, 8, 8).unbind()
    loss = denoising_loss(
        unet, schedule_of("epsilon"), ObjectiveConfig(), latents, noise, TIMESTEPS, torch.zeros(4, 8, 32)
    )
    assert unet.asked[0].dtype == unet.asked[2].dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_loss_of_one_sample_is_its_own() -> None:
    output, target = torch.randn(2, 3, 4, 8, 8).unbind()
    weights = torch.tensor([1.0, 2.0, 0.5])
    together = diffusion_loss(output, target, weights)
    alone = diffusion_loss(output[1:2], target[1:2], weights[1:2])
    assert torch.equal(together[1:2], alone)


def test_gradients_reach_every_parameter(config: ModelConfig) -> None:
    unet = load_unet(config, torch.float32)
    latents, noise = torch.randn(2, 2, 4, 8, 8).unbind()
    text, timesteps = torch.randn(2, 8, 32), torch.tensor([10, 900])
    denoising_loss(unet, noise_schedule(config), ObjectiveConfig(), latents, noise, timesteps, text).mean().backward()
    assert [name for name, parameter in unet.named_parameters() if parameter.grad is None] == []


@given(snr=st.floats(0, 1e6, width=32), gamma=st.floats(0.1, 50))
def test_both_weights_count_the_image_error_by_the_clipped_snr(snr: float, gamma: float) -> None:
    # An error e of the image is an error e * sqrt(snr) of the noise and e * sqrt(snr + 1) of the velocity.
    ratio = torch.tensor([snr], dtype=torch.float64)
    expected = ratio.clamp(max=gamma)
    torch.testing.assert_close(min_snr_weight(ratio, gamma, "epsilon") * ratio, expected)
    torch.testing.assert_close(min_snr_weight(ratio, gamma, "v_prediction") * (ratio + 1), expected)


def test_weight_at_zero_snr_is_finite() -> None:
    assert min_snr_weight(torch.zeros(1), 5.0, "epsilon").item() == 1
    assert min_snr_weight(torch.zeros(1), 5.0, "v_prediction").item() == 0


@given(st.floats(0, 1, exclude_max=True, width=32))
def test_quantile_gives_a_timestep_of_the_schedule(u: float) -> None:
    timestep = timesteps_from_quantile(torch.tensor([u]), schedule_of("epsilon"))
    assert timestep.dtype == torch.int64
    assert 0 <= timestep.item() <= 999


def test_even_quantiles_meet_every_timestep_once() -> None:
    quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.equal(timesteps_from_quantile(quantiles, schedule_of("epsilon")), torch.arange(1000))


@pytest.mark.parametrize("u", [-0.1, 1.0])
def test_a_quantile_outside_is_refused(u: float) -> None:
    with pytest.raises(ValueError, match=r"quantiles are in .*; values in \[0, 1\) are needed"):
        timesteps_from_quantile(torch.tensor([0.5, u]), schedule_of("epsilon"))


@pytest.mark.parametrize("settings", [{"min_snr_gamma": 0}, {"min_snr_gama": 5}])
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ObjectiveConfig.model_validate(settings)


def test_offset_noise_is_the_formula() -> None:
    noise, offset = torch.randn(2, 4, 3, 3), torch.randn(2, 4)
    with_it = with_offset(noise, offset, 0.1)
    for sample in range(2):
        for channel in range(4):
            # float32: two roundings.
            expected = noise[sample, channel] + 0.1 * offset[sample, channel]
            torch.testing.assert_close(with_it[sample, channel], expected, rtol=1e-6, atol=1e-7)


def test_offset_noise_has_its_variance() -> None:
    torch.manual_seed(0)
    means = with_offset(torch.randn(4000, 4, 8, 8), torch.randn(4000, 4), 0.5).mean(dim=(2, 3))
    # 1/64 of the usual noise and 0.25 of the offset: 16,000 values, 5 standard errors of a variance.
    assert means.var().item() == pytest.approx(1 / 64 + 0.25, rel=5 * (2 / 16000) ** 0.5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.0, 0.5), (2.0, 2.0)])
def test_timesteps_of_a_logit_normal(mean: float, std: float) -> None:
    config = ObjectiveConfig(timesteps="logit_normal", timesteps_mean=mean, timesteps_std=std)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    quantile = sampled_quantile(u, config)
    assert bool((quantile.diff() >= 0).all())
    logits = torch.logit(quantile[100:-100])
    # Without the outermost 0.2 % the deviation of a normal distribution is 1.2 % smaller.
    assert logits.mean().item() == pytest.approx(mean, abs=1e-6)
    assert logits.std().item() == pytest.approx(std, rel=0.02)
    edges = sampled_quantile(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), config)
    assert bool(((edges >= 0) & (edges < 1)).all())


def test_uniform_timesteps_are_the_draws_and_validation_is_uniform() -> None:
    config = ObjectiveConfig(timesteps="logit_normal", noise_offset=0.1, min_snr_gamma=3)
    u = torch.rand(8, dtype=torch.float64)
    assert torch.equal(sampled_quantile(u, config.for_validation), u)
    assert config.for_validation.noise_offset == 0
    assert config.for_validation.min_snr_gamma == 3
