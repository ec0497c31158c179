"""The schedule against diffusers' own DDPMScheduler and compute_snr."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from models.errors import ModelError
from models.schedule import NoiseSchedule

SCHEDULES: list[dict[str, Any]] = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
]


@pytest.mark.parametrize("settings", SCHEDULES, ids=lambda settings: str(settings["beta_schedule"]))
def test_noise_and_snr_are_those_of_diffusers(settings: dict[str, Any]) -> None:
    ddpm = DDPMScheduler(**settings)
    schedule = NoiseSchedule.from_scheduler_config(ddpm.config, scaling_factor=0.2)
    timesteps = torch.tensor([0, 1, ddpm.config.num_train_timesteps // 2, ddpm.config.num_train_timesteps - 1])
    latents, noise = torch.randn(2, 4, 4, 8, 8).unbind()
    assert schedule.num_timesteps == ddpm.config.num_train_timesteps
    assert schedule.scaling_factor == 0.2
    # sqrt(a) is taken after the look-up here and before it there: the same numbers, to the bit
    assert torch.equal(schedule.add_noise(latents, noise, timesteps), ddpm.add_noise(latents, noise, timesteps))
    # they square a quotient of two roots: some units in the last place of 1 - a, which is 1e-4 at t = 0
    torch.testing.assert_close(schedule.snr(timesteps), compute_snr(ddpm, timesteps), rtol=1e-3, atol=0)


def test_noise_is_added_in_float32() -> None:
    schedule = NoiseSchedule.from_scheduler_config(DDPMScheduler().config, scaling_factor=1)
    latents = torch.randn(2, 4, 4, 4).bfloat16()
    noisy = schedule.add_noise(latents, torch.randn(2, 4, 4, 4), torch.tensor([3, 700]))
    assert noisy.dtype == torch.float32


def test_zero_terminal_snr_is_zero() -> None:
    settings = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction").config
    schedule = NoiseSchedule.from_scheduler_config(settings, scaling_factor=1)
    assert schedule.snr(torch.tensor([999])).item() == 0


def test_the_setting_wins_over_the_scheduler() -> None:
    settings = DDPMScheduler().config
    assert NoiseSchedule.from_scheduler_config(settings, scaling_factor=1).prediction_type == "epsilon"
    changed = NoiseSchedule.from_scheduler_config(settings, scaling_factor=1, prediction_type="v_prediction")
    assert changed.prediction_type == "v_prediction"
    assert changed.scheduler_config["prediction_type"] == "v_prediction"


def test_another_prediction_type_is_refused() -> None:
    with pytest.raises(ModelError, match=r"prediction_type='sample'; training knows .* set model\.prediction_type"):
        NoiseSchedule.from_scheduler_config(DDPMScheduler(prediction_type="sample").config, scaling_factor=1)


@pytest.mark.parametrize("settings", SCHEDULES[:2], ids=lambda settings: str(settings["beta_schedule"]))
def test_rescaling_to_zero_terminal_snr_is_algorithm_1(settings: dict[str, Any]) -> None:
    config = DDPMScheduler(**settings).config
    before = NoiseSchedule.from_scheduler_config(config, scaling_factor=1).alpha_bar_T.double().sqrt()
    schedule = NoiseSchedule.from_scheduler_config(
        config, scaling_factor=1, prediction_type="v_prediction", zero_terminal_snr=True
    )
    # Lin et al. 2023, section 3.1: shifted so that the last is 0, scaled so that the first stays.
    expected = ((before - before[-1]) * before[0] / (before[0] - before[-1])) ** 2
    # float32 products of 1000 terms.
    torch.testing.assert_close(schedule.alpha_bar_T.double(), expected, rtol=1e-3, atol=1e-6)
    assert schedule.has_zero_terminal_snr
    assert schedule.scheduler_config["timestep_spacing"] == "trailing"
    assert not NoiseSchedule.from_scheduler_config(config, scaling_factor=1).has_zero_terminal_snr


def test_zero_terminal_snr_with_noise_predicted_is_refused() -> None:
    with pytest.raises(ModelError, match=r"learns nothing from: set model\.prediction_type=v_prediction, or"):
        NoiseSchedule.from_scheduler_config(DDPMScheduler().config, scaling_factor=1, zero_terminal_snr=True)
