"""Write a fine-tuned UNet as a whole pipeline: a diffusers folder that loads anywhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.base import ModelConfig
from models.stable_diffusion import empty_unet, load_pipeline

if TYPE_CHECKING:
    from torch import Tensor


# Beside model_index.json: how the UNet was trained.
RECORD_FILE = "sonoshard.json"


def save_pipeline(
    config: ModelConfig,
    unet_weights: Mapping[str, Tensor],
    folder: Path,
    record: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write the base of `config` with the UNet's weights replaced, float32 safetensors, whole or not at all.

    unet_weights: every parameter by its name, on the CPU. record: how they were trained, as JSON; `read_record`
    gives it back. files: more to lie beside it. An older model in `folder` is replaced.
    """
    import torch

    unet = empty_unet(config).eval()
    unet.load_state_dict(dict(unet_weights), assign=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    load_pipeline(config, "cpu", torch.float32, unet=unet).save_pretrained(partial)
    (partial / RECORD_FILE).write_text(json.dumps(dict(record), indent=1) + "\n", encoding="utf-8")
    for name, content in (files or {}).items():
        (partial / name).write_bytes(content)
    for path in [*partial.rglob("*"), partial]:
        _flush(path)
    if folder.exists():
        older = folder.with_name(f".{folder.name}.older")
        shutil.rmtree(older, ignore_errors=True)
        folder.rename(older)
        partial.rename(folder)
        shutil.rmtree(older)
    else:
        partial.rename(folder)
    _flush(folder.parent)


def _flush(path: Path) -> None:
    """Ask the operating system to put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return how the model in `folder` was trained; None where `save_pipeline` did not write one."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record
