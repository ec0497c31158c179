"""One .safetensors file with the key names of the original Stable Diffusion code (A1111, ComfyUI, sd.cpp read it).

A ControlNet is a second file, as those programs want it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ModelError
from models.original_names import NAMES, PREFIXES
from models.schedule import PredictionType
from models.weights import weight_files

if TYPE_CHECKING:
    from torch import Tensor

# The names of https://github.com/Stability-AI/ModelSpec; the layout itself says nothing of the prediction.
PREDICTION_KEY = "modelspec.prediction_type"
PREDICTIONS: dict[PredictionType, str] = {"epsilon": "epsilon", "v_prediction": "v"}


def save_single_file(folder: Path, file: Path) -> Path:
    """Write a diffusers folder as one .safetensors file, values and dtypes unchanged, and return its path.

    Raises: ModelError for an architecture that the original layout cannot hold.
    """
    import torch
    from diffusers import DDPMScheduler

    tensors: dict[str, Tensor] = {}
    config = _config(folder, "text_encoder")
    if config.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ModelError(
            f"{folder}/text_encoder has activation {config['hidden_act']!r}: it is an OpenCLIP model (SD 2), and "
            "single files are written for CLIP (SD 1: quick_gelu); use the diffusers folder"
        )
    for part in ("unet", "vae", "text_encoder"):
        tensors |= _renamed(folder, part)
    width = config["max_position_embeddings"]
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(width)[None]
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    tensors |= {"betas": scheduler.betas, "alphas_cumprod": scheduler.alphas_cumprod}
    return _write(file, tensors, {"format": "pt", PREDICTION_KEY: PREDICTIONS[scheduler.config.prediction_type]})


def told_prediction(file: Path) -> PredictionType | None:
    """Return what the model of a single file predicts, or None where the file does not say it, or cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            said = (stored.metadata() or {}).get(PREDICTION_KEY)
    except SafetensorError:
        return None  # what is wrong with it is said when its weights are read
    return next((prediction for prediction, spoken in PREDICTIONS.items() if spoken == said), None)


def save_controlnet_file(folder: Path, file: Path) -> Path:
    """Write the ControlNet of a diffusers folder as one .safetensors file, values and dtypes unchanged.

    Raises: ModelError if it has none, or one of an architecture that the original layout cannot hold.
    """
    return _write(file, _renamed(folder, "controlnet"), {"format": "pt"})


def read_part(file: Path, part: str) -> dict[str, Tensor]:
    """Return the tensors of one part of a single file, with their full original names; the rest is not read.

    Raises: ModelError if the file has none of them.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys() if key.startswith(PREFIXES[part])}  # noqa: SIM118
    if not tensors:
        raise ModelError(
            f"{file} holds no {part} in the layout of a Stable Diffusion checkpoint (no key begins with "
            f"{PREFIXES[part]!r}); a full checkpoint is needed, not a LoRA, a VAE alone or a diffusers part"
        )
    return tensors


def check_fits(file: Path, part: str, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    """Raise ModelError unless the `stored` tensors of a single file are the parameters that a folder's config asks for.

    `wanted` holds the state dict of the diffusers model made from that config; only its names and sizes are looked at.
    diffusers itself leaves what it does not find without values.
    """
    config = _config(folder, part)
    sizes = {PREFIXES[part] + NAMES[part](key, config): tensor.numel() for key, tensor in wanted.items()}
    if wrong := [name for name, size in sizes.items() if name not in stored or stored[name].numel() != size]:
        found = f"shape {list(stored[wrong[0]].shape)}" if wrong[0] in stored else "nothing"
        raise ModelError(
            f"{len(wrong)} of the {len(sizes)} tensors that {folder}/{part} describes are missing from {file} or have "
            f"another size (the first, {wrong[0]}: {found}); set model.single_file_config to the diffusers folder or "
            "cached hub id of the model that the file was made from"
        )


def _renamed(folder: Path, part: str) -> dict[str, Tensor]:
    """Return the tensors of one part of a diffusers folder under their original names."""
    from safetensors.torch import load_file

    config = _config(folder, part)
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder, part).paths:
        for key, tensor in load_file(path).items():
            name = NAMES[part](key, config)
            # What diffusers keeps as a matrix is a 1x1 convolution in the original VAE.
            is_convolution = part == "vae" and ".mid.attn_" in name and tensor.ndim == 2
            tensors[PREFIXES[part] + name] = tensor[:, :, None, None] if is_convolution else tensor
    return tensors


def _config(folder: Path, part: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    return config


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.unfinished")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished, metadata=metadata)
    unfinished.replace(file)
    return file
