"""Write a fine-tuned UNet as a whole pipeline: a diffusers folder that loads anywhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from models.stable_diffusion import ModelConfig, load_pipeline, load_unet

if TYPE_CHECKING:
    from torch import Tensor


def save_pipeline(config: ModelConfig, unet_weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the base of `config` with the UNet's weights replaced, float32 safetensors, whole or not at all.

    unet_weights: every parameter by its name, on the CPU. An existing `folder` is an error of the caller.
    """
    import torch

    unet = load_unet(config, torch.float32).eval()
    unet.load_state_dict(dict(unet_weights))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    load_pipeline(config, "cpu", torch.float32, unet=unet).save_pretrained(partial)
    for path in partial.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    partial.rename(folder)
