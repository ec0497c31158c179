"""One .safetensors file with the key names of the original Stable Diffusion code (A1111, ComfyUI, sd.cpp read it).

The names follow the architecture in the diffusers configs, however many levels and layers it has.
Source: CompVis/latent-diffusion `ldm/modules/diffusionmodules/{openaimodel,model}.py`; diffusers reads the same names
in `diffusers/loaders/single_file_utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ModelError
from models.weights import weight_files

if TYPE_CHECKING:
    from torch import Tensor

# Where each part of a pipeline lies in the file.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# diffusers renamed these in 2023; files saved before (SD 1.5 on the hub) still have the names in the second half.
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}


def unet_name(key: str, config: Mapping[str, Any]) -> str:
    """Return the original name of a UNet2DConditionModel's parameter, without the prefix.

    Raises: ModelError for a parameter that the original layout has no name for.
    """
    module, parameter = key.rsplit(".", 1)
    if module in _UNET_ENDS:
        return f"{_UNET_ENDS[module]}.{parameter}"
    side, *path = key.split(".")
    # One level is its layers and then the block that changes the resolution; on the way up it has one layer more.
    level_blocks = _layers_per_block(config) + 1
    match side, path:
        case "down_blocks", [level, "downsamplers", _, "conv", *_]:
            return f"input_blocks.{level_blocks * (int(level) + 1)}.0.op.{parameter}"
        case "down_blocks", [level, kind, layer, *rest]:
            return f"input_blocks.{level_blocks * int(level) + int(layer) + 1}.{_unet_layer(kind, rest, key)}"
        case "up_blocks", [level, "upsamplers", _, "conv", *_]:
            has_attention = "CrossAttn" in config["up_block_types"][int(level)]
            return f"output_blocks.{level_blocks * (int(level) + 1) - 1}.{1 + has_attention}.conv.{parameter}"
        case "up_blocks", [level, kind, layer, *rest]:
            return f"output_blocks.{level_blocks * int(level) + int(layer)}.{_unet_layer(kind, rest, key)}"
        case "mid_block", ["resnets", layer, *rest]:
            return f"middle_block.{2 * int(layer)}.{_resnet(rest, key)}"
        case "mid_block", ["attentions", layer, *rest]:
            return f"middle_block.{2 * int(layer) + 1}.{_attention(rest, key)}"
    raise _nameless(key, "UNet")


def vae_name(key: str, config: Mapping[str, Any]) -> str:
    """Return the original name of an AutoencoderKL's parameter, without the prefix.

    Raises: ModelError for a parameter that the original layout has no name for.
    """
    half, *path = key.split(".")
    match half, path:
        case (("quant_conv" | "post_quant_conv"), _):
            return key
        case _, ["conv_in" | "conv_out", _]:
            return key
        case _, ["conv_norm_out", parameter]:
            return f"{half}.norm_out.{parameter}"
        case _, ["mid_block", "resnets", layer, *rest]:
            return f"{half}.mid.block_{int(layer) + 1}.{_vae_resnet(rest)}"
        case _, ["mid_block", "attentions", layer, *rest] if ".".join(rest[:-1]) in _VAE_ATTENTION:
            return f"{half}.mid.attn_{int(layer) + 1}.{_VAE_ATTENTION['.'.join(rest[:-1])]}.{rest[-1]}"
        case "encoder", ["down_blocks", level, "resnets", layer, *rest]:
            return f"encoder.down.{level}.block.{layer}.{_vae_resnet(rest)}"
        case "encoder", ["down_blocks", level, "downsamplers", _, *rest]:
            return f"encoder.down.{level}.downsample.{'.'.join(rest)}"
        case "decoder", ["up_blocks", level, kind, layer, *rest]:
            original = len(config["up_block_types"]) - 1 - int(level)  # the original counts levels from the image
            if kind == "resnets":
                return f"decoder.up.{original}.block.{layer}.{_vae_resnet(rest)}"
            return f"decoder.up.{original}.upsample.{'.'.join(rest)}"
    raise _nameless(key, "VAE")


def text_encoder_name(key: str, config: Mapping[str, Any]) -> str:
    """Return the original name of a CLIPTextModel's parameter, without the prefix.

    transformers 5 dropped `text_model.` from its own names; the original keeps it.
    """
    return f"transformer.text_model.{key.removeprefix('text_model.')}"


NAMES: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
    "unet": unet_name,
    "vae": vae_name,
    "text_encoder": text_encoder_name,
}


def save_single_file(folder: Path, file: Path) -> Path:
    """Write a diffusers folder as one .safetensors file, values and dtypes unchanged, and return its path.

    Raises: ModelError for an architecture that the original layout cannot hold.
    """
    import torch
    from diffusers import DDPMScheduler
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Tensor] = {}
    for part, prefix in PREFIXES.items():
        config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        if part == "text_encoder" and config.get("hidden_act", "quick_gelu") != "quick_gelu":
            raise ModelError(
                f"{folder}/text_encoder has activation {config['hidden_act']!r}: it is an OpenCLIP model (SD 2), and "
                "single files are written for CLIP (SD 1: quick_gelu); use the diffusers folder"
            )
        for path in weight_files(folder, part).paths:
            for key, tensor in load_file(path).items():
                name = NAMES[part](key, config)
                # What diffusers keeps as a matrix is a 1x1 convolution in the original VAE.
                is_convolution = part == "vae" and ".mid.attn_" in name and tensor.ndim == 2
                tensors[prefix + name] = tensor[:, :, None, None] if is_convolution else tensor
    width = config["max_position_embeddings"]
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(width)[None]
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    tensors |= {"betas": scheduler.betas, "alphas_cumprod": scheduler.alphas_cumprod}
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}[scheduler.config.prediction_type]
    # The names of https://github.com/Stability-AI/ModelSpec; the layout itself says nothing of the prediction.
    metadata = {"format": "pt", "modelspec.prediction_type": prediction}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.unfinished")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished, metadata=metadata)
    unfinished.replace(file)
    return file


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
    config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    sizes = {PREFIXES[part] + NAMES[part](key, config): tensor.numel() for key, tensor in wanted.items()}
    if wrong := [name for name, size in sizes.items() if name not in stored or stored[name].numel() != size]:
        found = f"shape {list(stored[wrong[0]].shape)}" if wrong[0] in stored else "nothing"
        raise ModelError(
            f"{len(wrong)} of the {len(sizes)} tensors that {folder}/{part} describes are missing from {file} or have "
            f"another size (the first, {wrong[0]}: {found}); set model.single_file_config to the diffusers folder or "
            "cached hub id of the model that the file was made from"
        )


def _layers_per_block(config: Mapping[str, Any]) -> int:
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        raise ModelError(f"the UNet has layers_per_block={layers}; a single file needs one number for all levels")
    return layers


def _unet_layer(kind: str, rest: list[str], key: str) -> str:
    if kind == "resnets":
        return f"0.{_resnet(rest, key)}"
    if kind == "attentions":
        return f"1.{_attention(rest, key)}"
    raise _nameless(key, "UNet")


def _resnet(rest: list[str], key: str) -> str:
    if rest[0] not in _UNET_RESNET:
        raise _nameless(key, "UNet")
    return ".".join([_UNET_RESNET[rest[0]], *rest[1:]])


def _attention(rest: list[str], key: str) -> str:
    if rest[0] not in ("norm", "proj_in", "proj_out", "transformer_blocks"):
        raise _nameless(key, "UNet")  # not the cross-attention of Stable Diffusion
    return ".".join(rest)


def _vae_resnet(rest: Iterable[str]) -> str:
    return ".".join(rest).replace("conv_shortcut", "nin_shortcut")


def _nameless(key: str, model: str) -> ModelError:
    return ModelError(
        f"the {model}'s parameter {key} has no name in the original Stable Diffusion layout; only the architecture of "
        "SD 1 and SD 2 can be a single file: use the diffusers folder"
    )
