"""The noise schedule that a model was trained with, from a bundle's manifest."""

# T timesteps of the schedule

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler.errors import SamplerError

# What stands for no signal at all where a ratio of noise to signal is needed: the least positive number of 16 bits.
LEAST_ALPHA_BAR = 2.0**-24


@dataclass(frozen=True)
class Schedule:
    """How much of the image is left at each timestep, and what the UNet predicts.

    alpha_bar_T: float64 (of values rounded to float32), decreasing: the share of the image's variance left; 0 at the
    end with zero terminal SNR.
    prediction_type: "epsilon" or "v_prediction". spacing: how DDIM's timesteps lie: "leading", "linspace", "trailing".
    """

    alpha_bar_T: NDArray[np.float64]
    prediction_type: str
    spacing: str
    has_zero_terminal_snr: bool

    @classmethod
    def from_manifest(cls, settings: Mapping[str, Any], prediction_type: str) -> Schedule:
        """Return the schedule of a manifest's "schedule".

        Sources: Ho et al. 2020 (arXiv:2006.11239), section 2; the rescaling to zero terminal SNR is algorithm 1 of
        Lin et al. 2023 (arXiv:2305.08891).
        Raises: SamplerError if a setting is not known.
        """
        num, first, last = settings["num_train_timesteps"], settings["beta_start"], settings["beta_end"]
        kind = settings["beta_schedule"]
        if kind == "linear":
            beta_T = _evenly(first, last, num)
        elif kind == "scaled_linear":
            beta_T = _evenly(first**0.5, last**0.5, num) ** 2
        else:
            raise SamplerError(f"the bundle's beta_schedule is {kind!r}; this sampler knows linear and scaled_linear")
        if prediction_type not in ("epsilon", "v_prediction"):
            raise SamplerError(
                f"the bundle's prediction_type is {prediction_type!r}; this sampler knows epsilon and v_prediction"
            )
        spacing = settings.get("timestep_spacing", "leading")
        if spacing not in ("leading", "linspace", "trailing"):
            raise SamplerError(
                f"the bundle's timestep_spacing is {spacing!r}; this sampler knows leading, linspace and trailing"
            )
        alpha_bar_T = _products(1 - beta_T)
        is_rescaled = bool(settings["rescale_betas_zero_snr"])
        if is_rescaled and prediction_type == "epsilon":
            raise SamplerError("with zero terminal SNR the prediction of noise says nothing; v_prediction is needed")
        if is_rescaled:
            root_T = np.sqrt(alpha_bar_T)
            rescaled_T = ((root_T - root_T[-1]) * (root_T[0] / (root_T[0] - root_T[-1]))) ** 2
            # Through the betas and back, as diffusers goes.
            alpha_bar_T = _products(1 - (1 - np.append(rescaled_T[:1], rescaled_T[1:] / rescaled_T[:-1])))
        # Where T holds no signal at all, the first step must be taken at T (Lin et al. 2023, section 3.3).
        return cls(alpha_bar_T.astype(np.float64), prediction_type, "trailing" if is_rescaled else spacing, is_rescaled)

    @property
    def sigma_T(self) -> NDArray[np.float64]:
        """The ratio of noise to signal, sqrt((1 - a) / a), at each timestep; 4096 in place of infinity."""
        a_T = self.alpha_bar_T.copy()
        if self.has_zero_terminal_snr:
            a_T[-1] = LEAST_ALPHA_BAR
        return np.sqrt((1 - a_T) / a_T)


# The two below round to float32 where torch does: Karras' levels often fall halfway between two timesteps (one of 18
# steps does, in Stable Diffusion's schedule), and the last bit decides which of them the UNet is asked at.


def _evenly(first: float, last: float, num: int) -> NDArray[np.float32]:
    """Return values from first to last, [T] float32, rounded as torch.linspace rounds."""
    first, last = float(np.float32(first)), float(np.float32(last))
    step = float(np.float32(last - first) / np.float32(num - 1))
    index_T = np.arange(num)
    from_ends_T = np.where(index_T < num // 2, first + step * index_T, last - step * (num - 1 - index_T))
    return from_ends_T.astype(np.float32)


def _products(factor_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the product of all factors so far, [T] float32, rounded as torch.cumprod rounds."""
    return np.cumprod(factor_T.astype(np.float64)).astype(np.float32)
