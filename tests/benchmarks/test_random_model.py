"""Stable Diffusion 1.5 of random weights opens as any base does: UNet, VAE, and a text encoder with its tokenizer."""

from pathlib import Path

import pytest
import torch

from benchmarks.random_model import NUM_TOKENS, write_random_model
from benchmarks.stable_diffusion_config import UNET
from models.base import ModelConfig, resolution_of
from models.stable_diffusion import load_encoder, load_unet


@pytest.mark.slow
def test_it_opens_and_encodes(tmp_path: Path) -> None:
    narrow = UNET | {"block_out_channels": [32, 32, 32, 32], "norm_num_groups": 8, "attention_head_dim": 4}
    config = ModelConfig(base=str(write_random_model(tmp_path, narrow)))
    assert resolution_of(config) == 512
    encoder = load_encoder(config, "cpu", torch.float32)
    moments = encoder.moments(torch.zeros(1, 3, 64, 64))
    text = encoder.embed(["Ultrasound of a benign breast lesion"])
    assert moments.shape == (1, 8, 8, 8)
    assert text.shape == (1, NUM_TOKENS, 768)
    unet = load_unet(config, torch.float32)
    prediction = unet(moments[:, :4], torch.tensor([500]), text).sample
    assert prediction.shape == (1, 4, 8, 8)
    assert prediction.isfinite().all()
