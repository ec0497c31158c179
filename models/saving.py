"""Write a fine-tuned UNet or ControlNet as a whole pipeline: a diffusers folder that loads anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.base import ModelConfig
from models.controlnet import empty_controlnet, load_control_pipeline
from models.durable import flush
from models.record import RECORD_FILE
from models.stable_diffusion import empty_unet, load_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

Network = Literal["unet", "controlnet"]


def save_pipeline(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    record: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    network: Network = "unet",
) -> None:
    """Write the base of `config` with the weights of one network replaced, float32 safetensors, whole or not at all.

    weights: every parameter of `network` by its name, on the CPU; with those of a ControlNet it is a ControlNet's
    pipeline. record: how they were trained, as JSON; `read_record` gives it back. files: more to lie beside it. An
    older model in `folder` is replaced.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _pipeline(config, weights, network).save_pretrained(partial)
    (partial / RECORD_FILE).write_text(json.dumps(dict(record), indent=1) + "\n", encoding="utf-8")
    for name, content in (files or {}).items():
        (partial / name).write_bytes(content)
    for path in [*partial.rglob("*"), partial]:
        flush(path)
    if folder.exists():
        older = folder.with_name(f".{folder.name}.older")
        shutil.rmtree(older, ignore_errors=True)
        folder.rename(older)
        partial.rename(folder)
        shutil.rmtree(older)
    else:
        partial.rename(folder)
    flush(folder.parent)


def _pipeline(config: ModelConfig, weights: Mapping[str, Tensor], network: Network) -> DiffusionPipeline:
    import torch

    trained = empty_unet(config) if network == "unet" else empty_controlnet(config)
    trained.eval().load_state_dict(dict(weights), assign=True)
    if network == "unet":
        return load_pipeline(config, "cpu", torch.float32, unet=trained)
    return load_control_pipeline(config, "cpu", torch.float32, controlnet=trained)
