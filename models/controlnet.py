"""ControlNet: a copy of the UNet's first half that sees a mask and steers the UNet, which stays as it is.

Source: Zhang, Rao, Agrawala 2023 (arXiv:2302.05543).
"""

# B batch, C latent channels, h w latent height and width, H W image height and width, L prompt tokens, D text width

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from models.base import ModelConfig, open_base
from models.stable_diffusion import apply_settings, empty_unet, load_part, load_pipeline, load_unet

if TYPE_CHECKING:
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
    from torch import Tensor

# Channels of the convolutions that bring a hint to the size of the latents, each beyond the first of which halves it,
# beside a UNet whose first level has so many. At the size of the image they would cost a small UNet most of its time.
HINT_CHANNELS, UNET_CHANNELS = (16, 32, 96, 256), 320
LEAST_CHANNELS = 16


class ControlledUnet(nn.Module):
    """A UNet and its ControlNet, called as a UNet is, with the hint as one input more."""

    def __init__(self, unet: nn.Module, controlnet: nn.Module) -> None:
        """Put them together. controlnet: it, or what wraps it for training."""
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet
        self.config: Any = unet.config

    def forward(self, noisy_BChw: Tensor, timesteps_B: Tensor, text_BLD: Tensor, hint_B3HW: Tensor) -> Any:
        """Return what the UNet returns; its prediction is `sample`, [B, C, h, w]. hint_B3HW: in [0, 1]."""
        down, mid = self.controlnet(
            noisy_BChw, timesteps_B, text_BLD, controlnet_cond=hint_B3HW.to(noisy_BChw.dtype), return_dict=False
        )
        return self.unet(
            noisy_BChw,
            timesteps_B,
            text_BLD,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )


def has_controlnet(config: ModelConfig) -> bool:
    """Return whether the base has a ControlNet: it is a folder that a ControlNet stage left, or one like it."""
    base = open_base(config)
    return base.single_file is None and (base.folder / "controlnet" / "config.json").is_file()


def load_controlnet(config: ModelConfig, dtype: torch.dtype, seed: int) -> ControlNetModel:
    """Return the base's ControlNet or, where it has none, a new one made of its UNet; on the CPU, in training mode.

    A new one changes nothing yet: its last convolutions are 0. seed: of the convolutions that take in the hint.
    """
    import torch
    from diffusers import ControlNetModel

    if has_controlnet(config):
        controlnet = load_part(open_base(config), "controlnet", ControlNetModel, dtype)
    else:
        unet = load_unet(config.model_copy(update={"compile": False}), dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            controlnet = new_controlnet(config, unet)
        nn.Module.to(controlnet, dtype)  # diffusers' own `to` warns of modules to keep in float32, of which it has none
    apply_settings(controlnet, config)
    return controlnet.train()


def new_controlnet(config: ModelConfig, unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet made of a UNet; its architecture alone where the UNet is on the meta device."""
    from diffusers import ControlNetModel

    num_halvings = open_base(config).latent_pixels.bit_length() - 1
    num_wider = num_halvings + 1 - len(HINT_CHANNELS)
    widths = (*HINT_CHANNELS, *num_wider * HINT_CHANNELS[-1:])[: num_halvings + 1]
    share = unet.config["block_out_channels"][0] / UNET_CHANNELS
    channels = tuple(max(LEAST_CHANNELS, round(share * width)) for width in widths)
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)


def empty_controlnet(config: ModelConfig) -> ControlNetModel:
    """Return the architecture of the base's ControlNet, or of a new one, without weights (on the meta device)."""
    import torch
    from diffusers import ControlNetModel

    if not has_controlnet(config):
        with torch.device("meta"):
            return new_controlnet(config, empty_unet(config))
    with torch.device("meta"):
        return ControlNetModel.from_config(open_base(config).part_config("controlnet"))


def load_frozen_unet(config: ModelConfig, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return the UNet that a ControlNet is trained beside: without gradients, with the settings for training."""
    return load_unet(config, dtype).requires_grad_(False)


def load_control_pipeline(
    config: ModelConfig, device: torch.device | str, dtype: torch.dtype, *, controlnet: ControlNetModel | None = None
) -> StableDiffusionControlNetPipeline:
    """Return the whole pipeline, with `controlnet` (as it is) in place of the base's where one is given."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    if controlnet is None:
        controlnet = load_part(open_base(config), "controlnet", ControlNetModel, dtype).eval().to(device)
    parts = load_pipeline(config, device, dtype).components
    return StableDiffusionControlNetPipeline(**parts, controlnet=controlnet, requires_safety_checker=False)
