"""The key names of the original Stable Diffusion and ControlNet code, by those of diffusers.

They follow the architecture in the diffusers configs, however many levels and layers it has.
Sources: CompVis/latent-diffusion `ldm/modules/diffusionmodules/{openaimodel,model}.py`; lllyasviel/ControlNet
`cldm/cldm.py`; diffusers reads the same names in `diffusers/loaders/single_file_utils.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from models.errors import ModelError

# Where each part of a pipeline lies in the file.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
    "controlnet": "control_model.",  # in a file of its own
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


def controlnet_name(key: str, config: Mapping[str, Any]) -> str:
    """Return the original name of a ControlNetModel's parameter, without the prefix.

    Raises: ModelError for a parameter that the original layout has no name for.
    """
    parameter = key.rsplit(".", 1)[-1]
    match key.split("."):
        case ["controlnet_cond_embedding", "conv_in", _]:
            return f"input_hint_block.0.{parameter}"
        case ["controlnet_cond_embedding", "blocks", number, _]:  # an activation stands between two convolutions
            return f"input_hint_block.{2 * int(number) + 2}.{parameter}"
        case ["controlnet_cond_embedding", "conv_out", _]:
            num_blocks = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
            return f"input_hint_block.{2 * num_blocks + 2}.{parameter}"
        case ["controlnet_down_blocks", number, _]:
            return f"zero_convs.{number}.0.{parameter}"
        case ["controlnet_mid_block", _]:
            return f"middle_block_out.0.{parameter}"
    return unet_name(key, config)


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
    "controlnet": controlnet_name,
}


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
