"""Stable Diffusion 1.5 of random weights in a diffusers folder: for speed and memory, where nothing is downloaded."""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.stable_diffusion_config import UNET, write_stable_diffusion_config
from models.base import locate

NUM_TOKENS = 77


def write_random_model(folder: Path, unet: dict[str, Any] = UNET) -> Path:
    """Write UNet, VAE, text encoder and a small tokenizer to `folder` (float32, 4.3 GB) and return it."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    write_stable_diffusion_config(folder, unet)
    torch.manual_seed(0)
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512,
    }
    UNet2DConditionModel.from_config(unet).save_pretrained(folder / "unet")
    AutoencoderKL.from_config(vae).save_pretrained(folder / "vae")
    shutil.copytree(locate("tiny") / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    num_words = len(json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
    # openai/clip-vit-large-patch14's text model, but for the words that it knows.
    text = CLIPTextConfig(
        vocab_size=num_words,
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=12,
        max_position_embeddings=NUM_TOKENS,
        bos_token_id=num_words - 2,
        eos_token_id=num_words - 1,
        pad_token_id=num_words - 1,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    config = folder / "tokenizer" / "tokenizer_config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(said | {"model_max_length": NUM_TOKENS}), encoding="utf-8")
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
