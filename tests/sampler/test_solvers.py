"""Each solver against diffusers' own object, configured as `models.sampling.make_solver` does."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from models.sampling import make_solver as make_torch_solver
from models.schedule import NoiseSchedule
from sampler.errors import SamplerError
from sampler.noise_levels import karras_levels
from sampler.schedule import Schedule
from sampler.solvers import SOLVERS, make_solver

# diffusers asks numpy for an array in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
KINDS = (
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
)
# (prediction type, zero terminal SNR); noise is never predicted without a signal left
PREDICTIONS = (("epsilon", False), ("v_prediction", False), ("v_prediction", True))
STEPS = (1, 2, 3, 10, 14, 15, 25, 50)


def settings(kind: dict[str, Any], zero_terminal_snr: bool, spacing: str = "leading") -> dict[str, Any]:
    return {
        **kind,
        "num_train_timesteps": 1000,
        "rescale_betas_zero_snr": zero_terminal_snr,
        "timestep_spacing": spacing,
    }


def diffusers_solver(sampler: str, manifest: dict[str, Any], prediction_type: Any) -> Any:
    schedule = NoiseSchedule.from_scheduler_config(
        {**manifest, "steps_offset": 1},
        scaling_factor=1,
        prediction_type=prediction_type,
        zero_terminal_snr=manifest["rescale_betas_zero_snr"],
    )
    if sampler != "unipc":
        return make_torch_solver(schedule, sampler)  # type: ignore[arg-type]
    spacing = {"timestep_spacing": "trailing"} if schedule.has_zero_terminal_snr else {}
    return UniPCMultistepScheduler.from_config(
        {**schedule.scheduler_config, **spacing, "prediction_type": prediction_type},
        use_karras_sigmas=not schedule.has_zero_terminal_snr,
    )


def known_model(latents: np.ndarray, timestep: int) -> np.ndarray:
    """Return what a UNet might: of the size of noise, bent, and different at each timestep."""
    return (np.tanh(latents * 0.7) + 0.2 * np.sin(3 * latents + timestep / 150)).astype(np.float32)


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize(("prediction_type", "zero_terminal_snr"), PREDICTIONS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["beta_schedule"])
@pytest.mark.parametrize("steps", STEPS)
def test_latents_are_those_of_diffusers(
    sampler: str, prediction_type: str, zero_terminal_snr: bool, kind: dict[str, Any], steps: int
) -> None:
    manifest = settings(kind, zero_terminal_snr)
    theirs = diffusers_solver(sampler, manifest, prediction_type)
    theirs.set_timesteps(steps)
    ours = make_solver(Schedule.from_manifest(manifest, prediction_type), sampler, steps)
    assert ours.timesteps == theirs.timesteps.tolist()[:steps]

    latents = np.random.default_rng(0).standard_normal((2, 4, 5, 6), dtype=np.float32)
    expected = torch.from_numpy(latents)
    assert theirs.init_noise_sigma == 1
    for timestep in ours.timesteps:
        latents = ours.step(known_model(latents, timestep), latents)
        answer = torch.from_numpy(known_model(expected.numpy(), timestep))
        expected = theirs.step(answer, torch.tensor(timestep), expected).prev_sample
    assert latents.dtype == np.float32
    # relative, since a model that knows nothing of its noise level lets latents grow
    scale = max(1.0, float(expected.abs().max()))
    assert np.abs(latents - expected.numpy()).max() / scale < 1e-4


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["beta_schedule"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_timesteps_of_every_count_are_those_of_diffusers(kind: dict[str, Any], zero_terminal_snr: bool) -> None:
    manifest = settings(kind, zero_terminal_snr)
    schedule = Schedule.from_manifest(manifest, "v_prediction")
    theirs = diffusers_solver("dpmsolver++", manifest, "v_prediction")
    for steps in range(1, 101):
        theirs.set_timesteps(steps)
        timesteps, _ = karras_levels(schedule, steps)
        assert timesteps.tolist() == theirs.timesteps.tolist()[:steps], f"{steps} steps"


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_ddim_takes_the_spacing_of_the_schedule(spacing: str) -> None:
    manifest = settings(KINDS[0], False, spacing)
    theirs = diffusers_solver("ddim", manifest, "epsilon")
    for steps in (1, 7, 20, 30):
        theirs.set_timesteps(steps)
        ours = make_solver(Schedule.from_manifest(manifest, "epsilon"), "ddim", steps)
        assert ours.timesteps == theirs.timesteps.tolist()[:steps]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["beta_schedule"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_share_of_signal_is_that_of_diffusers(kind: dict[str, Any], zero_terminal_snr: bool) -> None:
    manifest = settings(kind, zero_terminal_snr)
    ours = Schedule.from_manifest(manifest, "v_prediction").alpha_bar_T
    theirs = diffusers_solver("ddim", manifest, "v_prediction").alphas_cumprod.numpy()
    # The last bit of float32, which processors round differently. Zero terminal SNR subtracts the last root from all
    # (Lin et al. 2023, algorithm 1), so that the small ones keep the bits of the large: an absolute error of the root.
    assert np.allclose(np.sqrt(ours), np.sqrt(theirs), rtol=5e-7, atol=1e-7 if zero_terminal_snr else 0)
    assert (ours[-1] == 0) == zero_terminal_snr


def test_what_is_not_known_is_refused() -> None:
    manifest = settings(KINDS[0], False)
    schedule = Schedule.from_manifest(manifest, "epsilon")
    with pytest.raises(SamplerError, match=r"no sampler 'euler'; choose one of dpmsolver\+\+, ddim, unipc"):
        make_solver(schedule, "euler", 10)
    with pytest.raises(SamplerError, match="steps is 1001; needed is 1 to 1000"):
        make_solver(schedule, "ddim", 1001)
    with pytest.raises(SamplerError, match="beta_schedule is 'squaredcos_cap_v2'"):
        Schedule.from_manifest({**manifest, "beta_schedule": "squaredcos_cap_v2"}, "epsilon")
    with pytest.raises(SamplerError, match="prediction_type is 'sample'"):
        Schedule.from_manifest(manifest, "sample")
    with pytest.raises(SamplerError, match="zero terminal SNR"):
        Schedule.from_manifest(settings(KINDS[0], zero_terminal_snr=True), "epsilon")
