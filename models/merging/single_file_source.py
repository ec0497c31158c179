"""What a single .safetensors file holds, by diffusers' names: parts of a checkpoint, a ControlNet, a LoRA."""

# R rank of a low-rank change, M N rows and columns of the matrix that it changes

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.base import ModelConfig, open_base
from models.controlnet import empty_controlnet
from models.errors import ModelError
from models.merging.open_clip import OpenClipSource, is_open_clip
from models.merging.partly_trained import PartlyTrained, low_rank_names
from models.merging.source import FileSource, Source
from models.original_names import NAMES, PREFIXES
from models.stable_diffusion import empty_unet
from models.trained_part import LoraConfig

# What begins the names in a LoRA's file, as diffusers and `models.trained_part` write it.
LORA_PREFIX = "unet."


def parts_of(file: Path) -> list[str]:
    """Return what a file holds: unet, vae, text_encoder, controlnet, or lora alone. Raises: ModelError if nothing."""
    keys = FileSource(str(file), [file]).tensors.keys()
    if found := [part for part, prefix in PREFIXES.items() if any(key.startswith(prefix) for key in keys)]:
        return found
    if any(key.startswith(LORA_PREFIX) and ".lora_" in key for key in keys):
        return ["lora"]
    raise ModelError(
        f"{file} holds no model that is known here (the first of its tensors is {min(keys, default=None)}): a"
        " checkpoint or a ControlNet in the original layout, or a LoRA as diffusers writes it, is needed"
    )


def part_source(label: str, file: Path, part: str, folder: ModelConfig) -> Source:
    """Return one part of a file. folder: the model that has the part's architecture.

    Raises: ModelError if the file has not all of its tensors.
    """
    network = empty_part(folder, part)
    config: Mapping[str, Any] = {} if part == "text_encoder" else network.config
    wanted = network.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if part == "text_encoder" and is_open_clip(file):
        return OpenClipSource(label, file, shapes)
    keys = {name: PREFIXES[part] + NAMES[part](name, config) for name in wanted}
    stored = FileSource(label, [file]).tensors
    if wrong := [key for name, key in keys.items() if key not in stored or stored[key].numel != wanted[name].numel()]:
        found = f"shape {list(stored[wrong[0]].shape)}" if wrong[0] in stored else "nothing"
        raise ModelError(
            f"{len(wrong)} of the {len(keys)} tensors of the {part} of {folder.base} are missing from {file} or have"
            f" another size (the first, {wrong[0]}: {found}); give with --single-file-config the model that the file"
            " was made from"
        )
    # Some matrices are 1x1 convolutions in the original: their shapes are those that are wanted.
    return FileSource(label, [file], {key: name for name, key in keys.items()}, shapes)


def empty_part(folder: ModelConfig, part: str) -> Any:
    """Return the architecture of a part of a model, without weights."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    if part == "unet":
        return empty_unet(folder)
    if part == "controlnet":
        return empty_controlnet(folder)
    config = open_base(folder).part_config(part)
    with torch.device("meta"):
        return AutoencoderKL.from_config(config) if part == "vae" else CLIPTextModel(CLIPTextConfig(**config))


def lora_source(label: str, file: Path, base: Source) -> Source:
    """Return the UNet of `base` with a LoRA file's changes folded in.

    Raises: ModelError if the file changes anything else than matrices of that UNet.
    """
    names = {}
    for key in FileSource(label, [file]).tensors:
        module, _, end = key.removeprefix(LORA_PREFIX).rpartition(".lora_")
        if not key.startswith(LORA_PREFIX) or end not in ("A.weight", "B.weight"):
            raise ModelError(
                f"{file} has {key}, and what is folded in is {LORA_PREFIX}MODULE.lora_A.weight and lora_B.weight"
                " alone, as sonoshard and diffusers write a LoRA of the UNet"
            )
        names[key] = low_rank_names(module)[end == "B.weight"]
    changes = FileSource(label, [file], names)
    for module in sorted({name.rpartition(".lora_")[0] for name in changes.tensors}):
        down, up = (changes.tensors.get(name) for name in low_rank_names(module))
        matrix = base.tensors.get(f"{module}.weight")
        up_MR, down_RN, matrix_MN = (list(of.shape) if of else [] for of in (up, down, matrix))
        if up_MR[1:] != down_RN[:1] or up_MR[:1] + down_RN[1:] != matrix_MN or len(matrix_MN) != 2:
            raise ModelError(
                f"{file} is no LoRA of {base.label}: at {module} B, A and the matrix have the shapes {up_MR}, {down_RN}"
                f" and {matrix_MN} ([]: none); give with --single-file-config the model that it was trained from"
            )
    return PartlyTrained(label, base, changes, LoraConfig())
