"""What a stage trains, and what stands frozen beside it: the UNet, or a ControlNet and its UNet."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launch.config import RunConfig
from launch.facts import stage_seed
from launch.stage_config import StageConfig
from models.base import ModelConfig
from models.controlnet import ControlledUnet, empty_controlnet, load_controlnet, load_frozen_unet
from models.stable_diffusion import empty_unet, load_unet
from models.trained_part import train_only


class WrappedUnet(nn.Module):
    """A UNet that is called through an engine, as one that ZeRO-3 divided must be; it has the bare one's config."""

    def __init__(self, network: nn.Module, config: Any) -> None:
        super().__init__()
        self.config = config
        self._network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the UNet returns."""
        return self._network(*args, **kwargs)


def empty_trained(model: ModelConfig, stage: StageConfig) -> nn.Module:
    """Return the architecture of what a stage trains, on the meta device; the rest of it requires no gradient."""
    if stage.has_hints:
        return empty_controlnet(model)
    unet = empty_unet(model)
    train_only(unet, stage.trains, stage.lora)
    return unet


@dataclass(frozen=True)
class Networks:
    """The network that a stage trains; the frozen UNet that it steers where that is a ControlNet, else None."""

    trained: nn.Module
    frozen_unet: nn.Module | None

    @classmethod
    def load(cls, config: RunConfig, stage: StageConfig, dtype: torch.dtype, device: torch.device) -> "Networks":
        """Return the networks of a stage that starts from config.model, in training mode."""
        if not stage.has_hints:
            unet = load_unet(config.model, dtype)
            train_only(unet, stage.trains, stage.lora, seed=stage_seed(config, stage))
            return cls(unet.to(device), None)
        controlnet = load_controlnet(config.model, dtype, stage_seed(config, stage))
        return cls(controlnet.to(device), load_frozen_unet(config.model, dtype).to(device))

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the frozen UNet."""
        return sum(p.nbytes for p in self.frozen_unet.parameters()) if self.frozen_unet else 0

    def denoiser(self, network: nn.Module) -> nn.Module:
        """Return what is called as the UNet is: (noisy latents, timesteps, text), of a ControlNet also (hint).

        network: the trained one, or the engine's wrapper of it.
        """
        if self.frozen_unet is None:
            return WrappedUnet(network, self.trained.config)
        return ControlledUnet(self.frozen_unet, network)
