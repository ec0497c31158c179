"""The loop of diffusers' text-to-image example, to set beside ours: it encodes images and prompts at every step.

Source: huggingface/diffusers, examples/text_to_image/train_text_to_image.py, read at commit 000280f56a6a. Its defaults
and its calls, without trackers and validation. It transforms with torchvision, which is no dependency of ours: Pillow
and numpy do the same here, for images that have the resolution already.

`python -m benchmarks.diffusers_example MANIFEST OUT` trains on a manifest's images, appends to OUT/times.jsonl when
each step ended (Unix seconds), and saves with accelerate as the example does; with --resume it goes on.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

from data.manifest import Manifest, ManifestRow
from models.base import locate

TIMES = "times.jsonl"


class Images(Dataset[dict[str, Tensor]]):
    """Training images, transformed and with tokens of a caption whenever one is asked for."""

    def __init__(self, rows: list[ManifestRow], tokenizer: Any) -> None:
        self._rows, self._tokenizer = rows, tokenizer

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row, length = self._rows[index], self._tokenizer.model_max_length
        pixels_HWC = np.asarray(Image.open(row.image).convert("RGB"))
        if random.random() < 0.5:
            pixels_HWC = pixels_HWC[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))).float() / 127.5 - 1
        caption = random.choice(row.prompts)
        tokens = self._tokenizer(
            [caption], max_length=length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return {"pixel_values": pixels, "input_ids": tokens.input_ids[0]}


class Example:
    """What the example trains with. batches: of an epoch; unet: what is trained, in float32."""

    def __init__(self, base: str, manifest: Path, micro_size: int, device: torch.device) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = locate(base)
        # Of what is not trained, and of autocast.
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.device = device
        self._schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self._text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
        self._vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        for part in (self._text_encoder, self._vae):
            part.requires_grad_(False).to(device, dtype=self.dtype)
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train().to(device)
        rows = [row for row in Manifest.read(manifest).rows if row.split == "train"]
        images = Images(rows, CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"))
        self.batches = DataLoader(images, shuffle=True, batch_size=micro_size, drop_last=True)

    def endless(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of one epoch after another."""
        while True:
            yield from self.batches

    def loss(self, network: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of one batch by `network`, which is the UNet or what wraps it."""
        latents = self._vae.encode(batch["pixel_values"].to(self.device, self.dtype)).latent_dist.sample()
        latents = latents * self._vae.config.scaling_factor
        noise = torch.randn_like(latents)
        num_timesteps = self._schedule.config.num_train_timesteps
        timesteps = torch.randint(0, num_timesteps, (len(latents),), device=latents.device)
        noisy = self._schedule.add_noise(latents, noise, timesteps)
        text = self._text_encoder(batch["input_ids"].to(self.device))[0]
        target = noise
        if self._schedule.config.prediction_type == "v_prediction":
            target = self._schedule.get_velocity(latents, noise, timesteps)
        with torch.autocast(self.device.type, self.dtype, enabled=self.device.type == "cuda"):
            prediction = network(noisy, timesteps, text).sample
        return mse_loss(prediction.float(), target.float())


def main() -> None:
    """Train as the example does, with its checkpoints."""
    parser = argparse.ArgumentParser(description="The loop of diffusers' text-to-image example.")
    parser.add_argument("manifest", type=Path, help="manifest.parquet of the images")
    parser.add_argument("out", type=Path, help="folder of the checkpoint and of times.jsonl")
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--micro-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    arguments = parser.parse_args()
    from accelerate import Accelerator  # type: ignore[import-untyped]

    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    example = Example(arguments.base, arguments.manifest, arguments.micro_size, accelerator.device)
    optimizer = torch.optim.AdamW(example.unet.parameters(), lr=1e-4, weight_decay=1e-2)
    unet, optimizer, batches = accelerator.prepare(example.unet, optimizer, example.batches)
    example.batches = batches
    checkpoint = arguments.out / "checkpoint"
    if arguments.resume:
        accelerator.load_state(str(checkpoint))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for _, batch in zip(range(arguments.steps), example.endless(), strict=False):
        accelerator.backward(example.loss(unet, batch))
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with (arguments.out / TIMES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time()}) + "\n")
    if not arguments.resume:
        accelerator.save_state(str(checkpoint))


if __name__ == "__main__":
    main()
