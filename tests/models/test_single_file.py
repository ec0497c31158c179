"""The original layout: a bit-exact round trip through diffusers' reader, for more than one architecture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.base import ModelConfig
from models.controlnet import new_controlnet
from models.errors import ModelError
from models.original_names import controlnet_name, unet_name, vae_name
from models.single_file import save_controlnet_file, save_single_file
from models.stable_diffusion import encoder_fingerprint, load_pipeline, load_unet

PARTS = ("unet", "vae", "text_encoder")


def same_values(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_pipeline_of_the_file_is_that_of_the_folder(folder: Path, single_file: Path, config: ModelConfig) -> None:
    expected = load_pipeline(config, "cpu", torch.float32)
    of_diffusers = StableDiffusionPipeline.from_single_file(single_file, config=str(folder), local_files_only=True)
    file_config = ModelConfig(base=str(single_file), single_file_config=str(folder))
    ours = load_pipeline(file_config, "cpu", torch.float32)
    for part in PARTS:
        assert same_values(getattr(of_diffusers, part), getattr(expected, part)), part
        assert same_values(getattr(ours, part), getattr(expected, part)), part
    assert encoder_fingerprint(file_config) == encoder_fingerprint(config)


def test_parts_load_alone(folder: Path, single_file: Path, config: ModelConfig) -> None:
    expected = load_pipeline(config, "cpu", torch.float32)
    for model_class, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        part_model = model_class.from_single_file(
            str(single_file), config=str(folder), subfolder=part, local_files_only=True
        )
        assert same_values(part_model, getattr(expected, part))


def test_stored_float16_is_cast_to_the_dtype_asked(folder: Path, half_folder: Path, tmp_path: Path) -> None:
    file = save_single_file(half_folder, tmp_path / "half.safetensors")
    with safe_open(file, framework="pt") as stored:
        assert stored.get_tensor("model.diffusion_model.out.2.weight").dtype == torch.float16
    file_config = ModelConfig(base=str(file), single_file_config=str(folder))
    assert same_values(
        load_unet(file_config, torch.float32), load_unet(ModelConfig(base=str(half_folder)), torch.float32)
    )


# (channels of each level, layers of a level, which levels attend)
ARCHITECTURES = [
    ((16,), 1, (True,)),
    ((16, 16, 32), 2, (True, False, True)),
    ((16, 16, 32, 32), 2, (True, True, True, False)),  # that of SD 1 and 2
    ((16, 16, 16, 16, 32), 3, (False, True, True, True, False)),
]


@pytest.mark.parametrize(("channels", "layers", "attends"), ARCHITECTURES, ids=lambda value: str(value))
def test_unet_of_any_depth_survives(
    channels: tuple[int, ...], layers: int, attends: tuple[bool, ...], tmp_path: Path
) -> None:
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        norm_num_groups=8,
        cross_attention_dim=8,
        attention_head_dim=2,
        use_linear_projection=layers == 3,  # as SD 2 does
    )
    unet.save_pretrained(tmp_path / "unet")
    stored = {f"model.diffusion_model.{unet_name(key, unet.config)}": value for key, value in unet.state_dict().items()}
    assert len(stored) == len(unet.state_dict())
    again = UNet2DConditionModel.from_single_file(stored, config=str(tmp_path), subfolder="unet")
    assert same_values(again, unet)


@pytest.mark.parametrize(("levels", "layers"), [(1, 2), (3, 1), (4, 2)])
def test_vae_of_any_depth_survives(levels: int, layers: int, tmp_path: Path) -> None:
    vae = AutoencoderKL(
        block_out_channels=tuple(8 * (1 + level // 2) for level in range(levels)),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=layers,
        norm_num_groups=4,
    )
    vae.save_pretrained(tmp_path / "vae")
    stored = {f"first_stage_model.{vae_name(key, vae.config)}": value for key, value in vae.state_dict().items()}
    assert len(stored) == len(vae.state_dict())
    assert same_values(AutoencoderKL.from_single_file(stored, config=str(tmp_path), subfolder="vae"), vae)


def test_controlnet_of_the_file_is_that_of_the_folder(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    controlnet = new_controlnet(config, load_unet(config, torch.float32))
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter)  # also those that begin as zeros, or as the UNet's
    controlnet.save_pretrained(tmp_path / "controlnet")
    file = save_controlnet_file(tmp_path, tmp_path / "model-controlnet.safetensors")
    with safe_open(file, framework="pt") as stored:
        assert all(key.startswith("control_model.") for key in stored.keys())  # noqa: SIM118
    again = ControlNetModel.from_single_file(
        str(file), config=str(tmp_path), subfolder="controlnet", local_files_only=True
    )
    assert same_values(again, controlnet)


def test_names_of_a_controlnet_are_those_of_the_original_code() -> None:
    """Names of control_v11p_sd15_canny.pth."""
    config = {"layers_per_block": 2, "conditioning_embedding_out_channels": (16, 32, 96, 256)}
    expected = {
        "controlnet_cond_embedding.conv_in.weight": "input_hint_block.0.weight",
        "controlnet_cond_embedding.blocks.5.bias": "input_hint_block.12.bias",
        "controlnet_cond_embedding.conv_out.weight": "input_hint_block.14.weight",
        "controlnet_down_blocks.11.weight": "zero_convs.11.0.weight",
        "controlnet_mid_block.bias": "middle_block_out.0.bias",
        "conv_in.weight": "input_blocks.0.0.weight",
        "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
    }
    assert {key: controlnet_name(key, config) for key in expected} == expected


def test_names_are_those_of_the_original_code() -> None:
    """Names of v1-5-pruned-emaonly.safetensors, the most used single file."""
    config: dict[str, Any] = {
        "layers_per_block": 2,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    expected = {
        "conv_in.weight": "input_blocks.0.0.weight",
        "time_embedding.linear_2.bias": "time_embed.2.bias",
        "down_blocks.0.resnets.1.time_emb_proj.weight": "input_blocks.2.0.emb_layers.1.weight",
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
        "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.bias": (
            "input_blocks.4.1.transformer_blocks.0.attn2.to_out.0.bias"
        ),
        "mid_block.resnets.1.conv2.weight": "middle_block.2.out_layers.3.weight",
        "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.attentions.2.norm.weight": "output_blocks.11.1.norm.weight",
        "conv_norm_out.weight": "out.0.weight",
    }
    assert {key: unet_name(key, config) for key in expected} == expected
    vae_expected = {
        "decoder.up_blocks.0.resnets.2.conv1.weight": "decoder.up.3.block.2.conv1.weight",
        "decoder.up_blocks.2.upsamplers.0.conv.weight": "decoder.up.1.upsample.conv.weight",
        "encoder.down_blocks.1.resnets.0.conv_shortcut.bias": "encoder.down.1.block.0.nin_shortcut.bias",
        "encoder.mid_block.attentions.0.to_out.0.weight": "encoder.mid.attn_1.proj_out.weight",
        "encoder.mid_block.attentions.0.proj_attn.weight": "encoder.mid.attn_1.proj_out.weight",
        "encoder.mid_block.attentions.0.query.weight": "encoder.mid.attn_1.q.weight",
        "decoder.conv_norm_out.bias": "decoder.norm_out.bias",
        "quant_conv.weight": "quant_conv.weight",
    }
    assert {key: vae_name(key, config) for key in vae_expected} == vae_expected


def test_file_says_what_the_unet_predicts(single_file: Path) -> None:
    with safe_open(single_file, framework="pt") as stored:
        assert stored.metadata()["modelspec.prediction_type"] == "epsilon"
        assert stored.get_tensor("alphas_cumprod").shape == (1000,)
        assert stored.get_tensor("first_stage_model.encoder.mid.attn_1.q.weight").shape == (16, 16, 1, 1)
        position_ids = stored.get_tensor("cond_stage_model.transformer.text_model.embeddings.position_ids")
        assert position_ids.tolist() == [list(range(8))]
    assert [path.name for path in single_file.parent.iterdir()] == [single_file.name], "nothing unfinished is left"


def test_old_text_encoder_names_are_known(broken: Path, single_file: Path, tmp_path: Path) -> None:
    """transformers before 5 saved `text_model.` before every name."""
    file = broken / "text_encoder" / "model.safetensors"
    save_file({f"text_model.{key}": value for key, value in load_file(file).items()}, file, {"format": "pt"})
    again = load_file(save_single_file(broken, tmp_path / "again.safetensors"))
    first = load_file(single_file)
    assert again.keys() == first.keys()
    assert all(torch.equal(again[key], first[key]) for key in first)


def test_open_clip_is_refused(broken: Path, tmp_path: Path) -> None:
    file = broken / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_act": "gelu"}))
    with pytest.raises(
        ModelError, match=r"activation 'gelu': it is an OpenCLIP model \(SD 2\).*use the diffusers folder"
    ):
        save_single_file(broken, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "key",
    [
        "add_embedding.linear_1.weight",
        "down_blocks.0.attentions.0.to_q.weight",
        "down_blocks.0.resnets.0.conv3.weight",
        "down_blocks.0.motion_modules.0.proj_in.weight",
    ],
)
def test_a_parameter_without_a_name_is_refused(key: str) -> None:
    with pytest.raises(ModelError, match=f"parameter {key} has no name in the original Stable Diffusion layout"):
        unet_name(key, {"layers_per_block": 2})


def test_layers_that_differ_by_level_are_refused() -> None:
    with pytest.raises(ModelError, match=r"layers_per_block=\[1, 2\]; a single file needs one number"):
        unet_name("down_blocks.0.resnets.0.conv1.weight", {"layers_per_block": [1, 2]})


def test_a_file_of_another_architecture_is_refused(folder: Path, single_file: Path, tmp_path: Path) -> None:
    tensors = load_file(single_file)
    del tensors["model.diffusion_model.out.2.weight"]
    save_file(tensors, tmp_path / "less.safetensors")
    file_config = ModelConfig(base=str(tmp_path / "less.safetensors"), single_file_config=str(folder))
    with pytest.raises(ModelError, match=r"1 of the \d+ tensors .*out\.2\.weight: nothing\); set model\.single_file"):
        load_unet(file_config, torch.float32)


def test_a_file_without_the_part_is_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"lora_unet.up": torch.zeros(1)}, tmp_path / "lora.safetensors")
    file_config = ModelConfig(base=str(tmp_path / "lora.safetensors"), single_file_config=str(folder))
    with pytest.raises(ModelError, match=r"holds no unet in the layout of a Stable Diffusion checkpoint .* not a LoRA"):
        load_unet(file_config, torch.float32)
