"""Which noise levels a solver visits, and at which timesteps the UNet is asked there."""

# T timesteps of the schedule, N steps of the solver

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampler.schedule import Schedule

# Karras et al. 2022 (arXiv:2206.00364), equation 5.
RHO = 7.0


def karras_levels(schedule: Schedule, steps: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return timesteps [N] and ratios of noise to signal [N + 1], the last of which is 0.

    Karras' levels; under zero terminal SNR, where they would begin at infinity and spend most steps where nothing
    happens, the levels of timesteps that lie evenly from the last one.
    """
    if schedule.has_zero_terminal_snr:
        timesteps_N = even_timesteps(schedule, steps)
        return timesteps_N, np.append(schedule.sigma_T[timesteps_N], 0.0)
    # Of float32, as diffusers has them: the last bit decides which way a timestep is rounded; see schedule.py.
    sigma_T = schedule.sigma_T.astype(np.float32).astype(np.float64)
    ramp_N = np.linspace(0, 1, steps)
    least, most = sigma_T[0] ** (1 / RHO), sigma_T[-1] ** (1 / RHO)
    sigma_N = (most + ramp_N * (least - most)) ** RHO
    timesteps_N = np.interp(np.log(sigma_N), np.log(sigma_T), np.arange(len(sigma_T))).round().astype(np.int64)
    return timesteps_N, np.append(sigma_N, 0.0)


def even_timesteps(schedule: Schedule, steps: int) -> NDArray[np.int64]:
    """Return timesteps that lie evenly, falling, [N].

    Source: Lin et al. 2023 (arXiv:2305.08891), table 2. "leading" begins one timestep later, as Stable Diffusion does.
    """
    num = len(schedule.alpha_bar_T)
    if schedule.spacing == "leading":
        return (np.arange(steps)[::-1] * (num // steps) + 1).clip(max=num - 1)
    if schedule.spacing == "linspace":
        return np.linspace(0, num - 1, steps).round()[::-1].astype(np.int64)
    return np.arange(num, 0, -num / steps)[:steps].round().astype(np.int64) - 1
