"""A model with a ControlNet that changes something, as a stage leaves it, and without training one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.base import ModelConfig
from models.saving import save_pipeline


def write_controlled_model(base: str, folder: Path, record: Mapping[str, Any]) -> Path:
    """Write `base` with a ControlNet to `folder` and return it: random where a new ControlNet begins with 0."""
    import torch

    from models.controlnet import load_controlnet

    config = ModelConfig(base=base)
    controlnet = load_controlnet(config, torch.float32, seed=0)
    random = torch.Generator().manual_seed(1)
    weights = {name: tensor.detach() for name, tensor in controlnet.named_parameters()}
    for name, tensor in weights.items():
        if not tensor.any():
            weights[name] = 0.1 * torch.randn(tensor.shape, generator=random)
    save_pipeline(config, weights, folder, record, network="controlnet")
    return folder
