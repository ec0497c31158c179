"""The training objective: what the UNet should predict, and how much each timestep counts."""

# B batch, C latent channels, H W latent height and width (after 3 channels: the image's), L prompt tokens, D text width

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from models.schedule import NoiseSchedule, PredictionType


class ObjectiveConfig(BaseModel):
    """How the losses of different timesteps are weighed."""

    model_config = ConfigDict(extra="forbid")

    min_snr_gamma: float | None = Field(
        5.0,
        gt=0,
        description="Signal-to-noise ratio above which a timestep counts no more (min-SNR, arXiv:2303.09556), a ratio. "
        "None: the plain mean squared error of the prediction.",
    )
    noise_offset: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of a noise that is the same for all pixels of a channel, beside the usual one: "
        "the model learns to change an image's mean brightness. 0: none. Often 0.05 to 0.1; zero terminal SNR is its "
        "better founded kin.",
    )
    timesteps: Literal["uniform", "logit_normal"] = Field(
        "uniform",
        description="Which timesteps training draws. logit_normal (arXiv:2403.03206): those around the mean more often."
        " Validation always takes all of them evenly.",
    )
    timesteps_mean: float = Field(0.0, description="Of logit_normal, in logits: 0 is the middle; more is noisier.")
    timesteps_std: float = Field(1.0, gt=0, description="Of logit_normal, in logits.")

    @property
    def for_validation(self) -> ObjectiveConfig:
        """The same loss at evenly spread timesteps, with plain noise, so that runs can be compared."""
        return self.model_copy(update={"timesteps": "uniform", "noise_offset": 0.0})


def denoising_loss(
    unet: Module,
    schedule: NoiseSchedule,
    config: ObjectiveConfig,
    latents_BCHW: Tensor,
    noise_BCHW: Tensor,
    timesteps_B: Tensor,
    text_BLD: Tensor,
    hint_B3HW: Tensor | None = None,
) -> Tensor:
    """Return the weighted loss of each sample, [B] float32, differentiable in the parameters of `unet`.

    `latents_BCHW` are scaled (schedule.scaling_factor), `noise_BCHW` is standard normal, `timesteps_B` is int64 in
    [0, T). hint_B3HW: only where `unet` is a ControlledUnet. Noise is added and the loss is taken in float32, whatever
    the dtype of the UNet's parameters.
    """
    dtype = next(unet.parameters()).dtype
    hint = () if hint_B3HW is None else (hint_B3HW,)
    noisy_BCHW = schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
    output_BCHW = unet(noisy_BCHW.to(dtype), timesteps_B, text_BLD.to(dtype), *hint).sample
    target_BCHW = prediction_target(schedule, latents_BCHW, noise_BCHW, timesteps_B)
    return diffusion_loss(output_BCHW, target_BCHW, timestep_weight(schedule, config, timesteps_B))


def diffusion_loss(unet_output_BCHW: Tensor, target_BCHW: Tensor, weight_B: Tensor) -> Tensor:
    """Return weight * mean squared error of each sample, [B] float32."""
    return weight_B * (unet_output_BCHW.float() - target_BCHW.float()).square().mean(dim=(1, 2, 3))


def prediction_target(schedule: NoiseSchedule, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
    """Return what the UNet should predict, [B, C, H, W] float32: the noise or the velocity, as the schedule says."""
    if schedule.prediction_type == "epsilon":
        return noise_BCHW.float()
    return velocity_target(latents_BCHW, noise_BCHW, schedule.alpha_bar(timesteps_B))


def velocity_target(latents_BCHW: Tensor, noise_BCHW: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """Return v = sqrt(a) * noise - sqrt(1 - a) * latents, [B, C, H, W] float32.

    Source: Salimans & Ho 2022 (arXiv:2202.00512), section 4.
    Raises: ValueError if `alpha_bar_B` is not one value per sample. (To look at the values would wait for the GPU.)
    """
    if alpha_bar_B.shape != latents_BCHW.shape[:1]:
        raise ValueError(f"alpha_bar has shape {list(alpha_bar_B.shape)}; one for each of {len(latents_BCHW)} samples")
    alpha_bar_B111 = alpha_bar_B.float()[:, None, None, None]
    return alpha_bar_B111.sqrt() * noise_BCHW.float() - (1 - alpha_bar_B111).sqrt() * latents_BCHW.float()


def timestep_weight(schedule: NoiseSchedule, config: ObjectiveConfig, timesteps_B: Tensor) -> Tensor:
    """Return the weight of each sample's loss by its timestep, [B] float32; 1 without min-SNR weighting."""
    snr_B = schedule.snr(timesteps_B)
    if config.min_snr_gamma is None:
        return snr_B.new_ones(snr_B.shape)
    return min_snr_weight(snr_B, config.min_snr_gamma, schedule.prediction_type)


def min_snr_weight(snr_B: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Return min(snr, gamma) / snr for noise, min(snr, gamma) / (snr + 1) for velocity, [B] float32.

    Both weigh the error of the predicted image by min(snr, gamma). At snr = 0 the first takes its limit, 1.
    Source: Hang et al. 2023 (arXiv:2303.09556), section 3.4.
    """
    if prediction_type == "epsilon":
        return (gamma / snr_B).clamp(max=1)
    return snr_B.clamp(max=gamma) / (snr_B + 1)


def with_offset(noise_BCHW: Tensor, offset_BC: Tensor, noise_offset: float) -> Tensor:
    """Return noise + noise_offset * offset, the same for all pixels of a channel; both are standard normal.

    Source: Guttenberg 2023, "Diffusion with offset noise"; examined by Lin et al. 2023 (arXiv:2305.08891), section 5.
    """
    return noise_BCHW + noise_offset * offset_BC[:, :, None, None]


def sampled_quantile(u_B: Tensor, config: ObjectiveConfig) -> Tensor:
    """Return the quantile of the timestep that uniform `u_B` in [0, 1) draws, [B] float64 in [0, 1).

    logit_normal: sigmoid(mean + std * z) with the normal quantile z of u.
    Source: Esser et al. 2024 (arXiv:2403.03206), section 3.1.
    """
    import torch

    if config.timesteps == "uniform":
        return u_B
    normal_B = torch.special.ndtri(u_B.double())
    # At u = 0 the sigmoid is 0; near 1 it may round up to 1.
    largest = 1 - torch.finfo(torch.float64).eps
    return torch.sigmoid(config.timesteps_mean + config.timesteps_std * normal_B).clamp(max=largest)


def timesteps_from_quantile(u_B: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return the timestep floor(u * T) of each quantile u in [0, 1), [B] int64 in [0, T).

    A float32 u just below 1 rounds up to T in the product: it is kept at T - 1.
    Raises: ValueError for a quantile outside [0, 1).
    """
    if bool(((u_B < 0) | (u_B >= 1)).any()):
        raise ValueError(f"quantiles are in [{u_B.min():g}, {u_B.max():g}]; values in [0, 1) are needed")
    return (u_B * schedule.num_timesteps).long().clamp(max=schedule.num_timesteps - 1)
