"""The noise schedule of a base model, as its scheduler's config describes it."""

# B batch, C latent channels, H W latent height and width, T timesteps of the schedule

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from models.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """How much of the image is left at each timestep, and what the UNet is trained to predict.

    `scaling_factor` is the VAE's: the UNet sees latents = scaling_factor * (a draw from the VAE's moments).
    """

    alpha_bar_T: (
        Tensor  # float32, decreasing, in [0, 1]: the share of the image's variance left; 0 with zero-terminal SNR
    )
    prediction_type: PredictionType
    scaling_factor: float
    scheduler_config: Mapping[str, Any]  # of a DDPMScheduler; a sampler is made from it

    @classmethod
    def from_scheduler_config(
        cls,
        scheduler_config: Mapping[str, Any],
        *,
        scaling_factor: float,
        prediction_type: PredictionType | None = None,
        zero_terminal_snr: bool | None = None,
    ) -> NoiseSchedule:
        """Return the schedule of a diffusers scheduler's config, of whatever class; None: as the config says.

        The values are DDPMScheduler's own, so every beta schedule that it knows is right here too. zero_terminal_snr:
        whether the noise levels are rescaled so that at T no signal is left, as Lin et al. 2023 (arXiv:2305.08891),
        algorithm 1, do; samplers must then begin at T, and the config says so to them.
        Raises: ModelError for a prediction that training does not know, or noise predicted where there is only noise.
        """
        from diffusers import DDPMScheduler

        changes: dict[str, Any] = {} if prediction_type is None else {"prediction_type": prediction_type}
        if zero_terminal_snr is not None:
            changes["rescale_betas_zero_snr"] = zero_terminal_snr
        if zero_terminal_snr:
            changes["timestep_spacing"] = "trailing"
        ddpm = DDPMScheduler.from_config(dict(scheduler_config), **changes)
        found = ddpm.config.prediction_type
        if found not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"the base's scheduler has prediction_type={found!r}; training knows 'epsilon' and 'v_prediction': "
                "choose another base, or set model.prediction_type"
            )
        if ddpm.config.rescale_betas_zero_snr and found == "epsilon":
            raise ModelError(
                "with zero terminal SNR the last timestep is all noise, which prediction_type='epsilon' learns nothing "
                "from: set model.prediction_type=v_prediction, or model.zero_terminal_snr=false"
            )
        # diffusers notes which values were defaults, and would put another class's defaults in their place.
        explicit = {key: value for key, value in ddpm.config.items() if key != "_use_default_values"}
        return cls(ddpm.alphas_cumprod.float(), found, float(scaling_factor), explicit)

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps that the base was trained with."""
        return len(self.alpha_bar_T)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether the last timestep is noise alone."""
        return bool(self.alpha_bar_T[-1] <= 1e-6)

    def alpha_bar(self, timesteps_B: Tensor) -> Tensor:
        """Return the share of the image's variance left at each sample's timestep, [B] float32, on its device."""
        return self.alpha_bar_T.to(timesteps_B.device)[timesteps_B]

    def snr(self, timesteps_B: Tensor) -> Tensor:
        """Return the signal-to-noise ratio a / (1 - a) at each sample's timestep, [B] float32; 0 where a is 0."""
        alpha_bar_B = self.alpha_bar(timesteps_B)
        return alpha_bar_B / (1 - alpha_bar_B)

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return sqrt(a) * latents + sqrt(1 - a) * noise, [B, C, H, W] float32.

        Source: Ho et al. 2020 (arXiv:2006.11239), equation 4.
        """
        alpha_bar_B111 = self.alpha_bar(timesteps_B)[:, None, None, None]
        return alpha_bar_B111.sqrt() * latents_BCHW.float() + (1 - alpha_bar_B111).sqrt() * noise_BCHW.float()
