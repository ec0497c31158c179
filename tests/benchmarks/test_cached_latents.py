"""Cached and online training see the same images, and the benchmark of both runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cached_latents import OPTIMIZERS, configuration
from benchmarks.diffusers_example import Example
from launch.prepare import encode_databases, prepare_databases
from launch.run_shards import open_shards
from tests.tiny_random_model import RESOLUTION, write_tiny_random_model

ROOT = Path(__file__).parent.parent.parent


def test_both_see_the_same_images_and_latents(tmp_path: Path) -> None:
    base = write_tiny_random_model(tmp_path / "base")
    config = configuration(tmp_path, str(base), RESOLUTION, 16, 2)
    prepare_databases(config)
    encode_databases(config)
    shards, example = open_shards(config), Example(str(base), config.manifest_path, 2, torch.device("cpu"))
    entries = shards.entries("breast", "train")
    assert len(example.batches.dataset) == len(entries) > 0  # type: ignore[arg-type]
    # One batch of each: pixels of [-1, 1] at the resolution, and a loss that reaches the UNet alone.
    batch = next(example.endless())
    assert batch["pixel_values"].shape == (2, 3, RESOLUTION, RESOLUTION)
    assert -1 <= batch["pixel_values"].min() < batch["pixel_values"].max() <= 1
    stored = np.stack([shards.read(e, mirrored=m).moments[:4].mean((1, 2)) for e in entries for m in (False, True)])
    encoded = example._vae.encode(batch["pixel_values"]).latent_dist.mean.mean((2, 3)).numpy()
    # Stored in float16, which rounds values of some tenths by 1e-4; two images differ by 1e-3 and more.
    nearest = np.abs(encoded[:, None] - stored[None]).max(2).min(1)
    assert (nearest < 5e-4).all(), "both encode the same pixels, or their mirror image"
    example.loss(example.unet, batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in example.unet.parameters())
    assert not any(p.requires_grad for p in example._vae.parameters())


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.cached_latents", "--count", "16", "--rounds", "1", "--micro-size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row["optimizer"] for row in found["rows"]] == [name for name in OPTIMIZERS for _ in range(2)]
    assert all(row["samples_per_s"] > 0 for row in found["rows"])
    assert len(found["beside"]) == 2
