"""Solvers of the probability flow: from noise to latents in few evaluations of the UNet. None of them adds noise.

Each holds `timesteps`, where the UNet is asked in turn, and takes its answer with `step`. Coefficients are float64.
"""

# B batch, C latent channels, H W latent height and width, N steps

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sampler.errors import SamplerError
from sampler.noise_levels import even_timesteps, karras_levels
from sampler.schedule import Schedule

Array = NDArray[np.float32]


class Solver(Protocol):
    """A solver in the middle of its work."""

    timesteps: list[int]

    def step(self, prediction_BCHW: Array, latents_BCHW: Array) -> Array:
        """Return the latents of the next noise level, given the UNet's answer at this one."""


class Ddim:
    """DDIM without noise. Source: Song et al. 2020 (arXiv:2010.02502), equation 12 with sigma 0."""

    def __init__(self, schedule: Schedule, steps: int) -> None:
        timesteps_N = even_timesteps(schedule, steps)
        num = len(schedule.alpha_bar_T)
        self.timesteps = [int(timestep) for timestep in timesteps_N]
        before = [timestep - num // steps for timestep in self.timesteps]
        alpha_bar = schedule.alpha_bar_T
        self._alpha_bars = [
            (float(alpha_bar[t]), float(alpha_bar[b]) if b >= 0 else 1.0)
            for t, b in zip(self.timesteps, before, strict=True)
        ]
        self._prediction_type = schedule.prediction_type
        self._index = 0

    def step(self, prediction_BCHW: Array, latents_BCHW: Array) -> Array:
        """Return the latents of the next noise level."""
        now, after = self._alpha_bars[self._index]
        self._index += 1
        alpha, sigma = math.sqrt(now), math.sqrt(1 - now)
        image_BCHW = denoised(self._prediction_type, prediction_BCHW, latents_BCHW, alpha, sigma)
        noise_BCHW = prediction_BCHW
        if self._prediction_type == "v_prediction":
            noise_BCHW = alpha * prediction_BCHW + sigma * latents_BCHW
        return math.sqrt(after) * image_BCHW + math.sqrt(1 - after) * noise_BCHW


class DpmSolver:
    """DPM-Solver++(2M). Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2; the last step is of first order."""

    def __init__(self, schedule: Schedule, steps: int) -> None:
        self._levels = Levels(schedule, steps)
        self.timesteps = self._levels.timesteps
        self._index = 0
        self._last_image_BCHW: Array | None = None

    def step(self, prediction_BCHW: Array, latents_BCHW: Array) -> Array:
        """Return the latents of the next noise level."""
        levels, i = self._levels, self._index
        image_BCHW = levels.denoised(i, prediction_BCHW, latents_BCHW)
        direction_BCHW = image_BCHW
        if self._last_image_BCHW is not None and i < len(self.timesteps) - 1:
            ratio = (levels.lambdas[i] - levels.lambdas[i - 1]) / (levels.lambdas[i + 1] - levels.lambdas[i])
            direction_BCHW = image_BCHW + (0.5 / ratio) * (image_BCHW - self._last_image_BCHW)
        self._last_image_BCHW = image_BCHW
        self._index += 1
        keep, take = levels.first_order(i)
        return keep * latents_BCHW + take * direction_BCHW


class UniPc:
    """UniPC of order 2 with B(h) = exp(h) - 1: a predictor, and a corrector that costs no evaluation more.

    Source: Zhao et al. 2023 (arXiv:2302.04867), algorithms 5 to 8. The first and the last step are of first order.
    """

    def __init__(self, schedule: Schedule, steps: int) -> None:
        self._levels = Levels(schedule, steps)
        self.timesteps = self._levels.timesteps
        self._index = 0
        self._images: list[Array] = []  # the last two denoised ones
        self._before_BCHW: Array | None = None  # the latents that the last step began with

    def step(self, prediction_BCHW: Array, latents_BCHW: Array) -> Array:
        """Return the latents of the next noise level."""
        i = self._index
        image_BCHW = self._levels.denoised(i, prediction_BCHW, latents_BCHW)
        if self._before_BCHW is not None:
            latents_BCHW = self._corrected(i, self._before_BCHW, image_BCHW)
        self._images = [*self._images[-1:], image_BCHW]
        self._before_BCHW = latents_BCHW
        self._index += 1
        keep, take = self._levels.first_order(i)
        predicted_BCHW = keep * latents_BCHW + take * image_BCHW
        if self._order(i) == 2:
            slope_BCHW = (self._images[0] - image_BCHW) / self._ratio(i)
            predicted_BCHW = predicted_BCHW + (0.5 * take) * slope_BCHW
        return predicted_BCHW

    def _corrected(self, i: int, before_BCHW: Array, image_BCHW: Array) -> Array:
        """Return the latents at level i anew, now that the UNet's answer there is known."""
        keep, take = self._levels.first_order(i - 1)
        last_BCHW = self._images[-1]
        corrected_BCHW = keep * before_BCHW + take * last_BCHW
        new_BCHW = image_BCHW - last_BCHW
        if self._order(i - 1) == 1:
            return corrected_BCHW + (0.5 * take) * new_BCHW
        ratio = self._ratio(i - 1)
        hh = self._levels.lambdas[i - 1] - self._levels.lambdas[i]  # -h
        b_h = math.expm1(hh)
        phi_2 = b_h / hh - 1
        phi_3 = phi_2 / hh - 0.5
        old_weight, new_weight = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], [phi_2 / b_h, 2 * phi_3 / b_h])
        old_BCHW = (self._images[0] - last_BCHW) / ratio
        slope_BCHW = float(old_weight) * old_BCHW + float(new_weight) * new_BCHW
        return np.asarray(corrected_BCHW + take * slope_BCHW, np.float32)

    def _order(self, i: int) -> int:
        return 1 if i in (0, len(self.timesteps) - 1) else 2

    def _ratio(self, i: int) -> float:
        """Return the (negative) length of the step to level i over that from it."""
        lambdas = self._levels.lambdas
        return (lambdas[i - 1] - lambdas[i]) / (lambdas[i + 1] - lambdas[i])


class Levels:
    """The noise levels of a solver: alpha (signal), sigma (noise), lambda = log(alpha / sigma), [N + 1] each."""

    def __init__(self, schedule: Schedule, steps: int) -> None:
        timesteps_N, levels = karras_levels(schedule, steps)
        self.timesteps = [int(timestep) for timestep in timesteps_N]
        ratios = levels.tolist()
        self.alphas = [1 / math.sqrt(ratio**2 + 1) for ratio in ratios]
        self.sigmas = [ratio * alpha for ratio, alpha in zip(ratios, self.alphas, strict=True)]
        self.lambdas = [-math.log(ratio) if ratio else math.inf for ratio in ratios]
        self._prediction_type = schedule.prediction_type

    def denoised(self, i: int, prediction_BCHW: Array, latents_BCHW: Array) -> Array:
        """Return the denoised latents that the UNet's answer at level i stands for."""
        return denoised(self._prediction_type, prediction_BCHW, latents_BCHW, self.alphas[i], self.sigmas[i])

    def first_order(self, i: int) -> tuple[float, float]:
        """Return the factors of the latents and of the denoised ones for a step of first order from level i."""
        h = self.lambdas[i + 1] - self.lambdas[i]
        return self.sigmas[i + 1] / self.sigmas[i], -self.alphas[i + 1] * math.expm1(-h)


def denoised(prediction_type: str, prediction_BCHW: Array, latents_BCHW: Array, alpha: float, sigma: float) -> Array:
    """Return the denoised latents, [B, C, H, W]. Source: Salimans & Ho 2022 (arXiv:2202.00512), section 4."""
    if prediction_type == "v_prediction":
        return np.asarray(alpha * latents_BCHW - sigma * prediction_BCHW, np.float32)
    return np.asarray((latents_BCHW - sigma * prediction_BCHW) / alpha, np.float32)


SOLVERS: dict[str, type[Ddim] | type[DpmSolver] | type[UniPc]] = {
    "dpmsolver++": DpmSolver,
    "ddim": Ddim,
    "unipc": UniPc,
}


def make_solver(schedule: Schedule, sampler: str, steps: int) -> Solver:
    """Return a solver at its first step.

    Raises: SamplerError if the sampler is not known, or has more steps than the schedule has timesteps.
    """
    if sampler not in SOLVERS:
        raise SamplerError(f"there is no sampler {sampler!r}; choose one of {', '.join(SOLVERS)}")
    num = len(schedule.alpha_bar_T)
    if not 1 <= steps <= num:
        raise SamplerError(f"steps is {steps}; needed is 1 to {num}, the timesteps that the model was trained with")
    return SOLVERS[sampler](schedule, steps)
