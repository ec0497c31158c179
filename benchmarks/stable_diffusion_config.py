"""Stable Diffusion 1.5's configs in a diffusers folder without any weights, and those of a smaller one."""

import json
from pathlib import Path
from typing import Any

UNET = {  # 859.5 million parameters
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SMALLER_UNET = UNET | {  # 70.5 million parameters
    "sample_size": 32,
    "block_out_channels": [160, 320, 416],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
}


def write_stable_diffusion_config(folder: Path, unet: dict[str, Any] = UNET) -> Path:
    """Write the configs of Stable Diffusion 1.5, with this UNet's, to `folder` and return it.

    Source: the config files of stable-diffusion-v1-5/stable-diffusion-v1-5 on the hub, what differs from the defaults.
    """
    parts: dict[str, dict[str, Any]] = {
        "model_index": {
            "_class_name": "StableDiffusionPipeline",
            **{part: ["", ""] for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")},
        },
        "unet/config": unet,
        "vae/config": {
            "_class_name": "AutoencoderKL",
            "latent_channels": 4,
            "block_out_channels": [128, 256, 512, 512],
        },
        "text_encoder/config": {"max_position_embeddings": 77, "hidden_size": 768},
        "scheduler/scheduler_config": {
            "_class_name": "PNDMScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "prediction_type": "epsilon",
        },
    }
    for name, content in parts.items():
        file = folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder
