"""Measure what storing the VAE's moments in 16 bits does to the decoded image.

`python -m benchmarks.moments [--base MODEL]` prints a table and one JSON line. Simulated images are encoded, their
means are rounded as shards would store them, and decoded in float32. The difference is to the image of the unrounded
mean: PSNR in dB over all images (peak 255), and the largest difference of a pixel in grey levels. `draw`: the same for
what training sees, a draw from the posterior, where mean and log-variance are both rounded. `vae`: what the VAE itself
loses of the image.
"""

import argparse
import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

from benchmarks.report import ReportTable, report
from data.loader import posterior_sample
from data.preprocessing import resized
from data.simulate import PRESETS, simulate
from models.base import ModelConfig, resolution_of
from models.stable_diffusion import load_vae

# B images, C latent channels, H W image height and width

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NUM_IMAGES = 8
SEED = 0


def images(resolution: int) -> Tensor:
    """Return simulated images of every preset, [B, 3, H, W] float32 in [-1, 1]."""
    drawn = [simulate(preset, SEED, index, 256).image for preset in PRESETS for index in range(NUM_IMAGES)]
    fitted = [np.asarray(resized(Image.fromarray(image).convert("RGB"), resolution, "pad")) for image in drawn]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).float() / 127.5 - 1


def grey_levels(images_BCHW: Tensor) -> Tensor:
    """Return images of [-1, 1] as they would be saved, without rounding: [0, 255]."""
    return (images_BCHW.clamp(-1, 1) + 1) * 127.5


def psnr(one: Tensor, other: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two sets of images in grey levels, in dB; infinite if they are equal."""
    error = (one - other).double().square().mean()
    return float(10 * torch.log10(255**2 / error))


@torch.no_grad()
def measure(base: str, resolution: int | None) -> dict[str, dict[str, float]]:
    """Return figures by stored precision."""
    config = ModelConfig(base=base, resolution=resolution)
    vae = load_vae(config, "cpu", torch.float32)
    originals = images(resolution_of(config))
    moments = torch.cat([_moments(vae, original[None]) for original in originals])
    mean_BCHW = moments.chunk(2, dim=1)[0]
    normal = torch.randn(mean_BCHW.shape, generator=torch.Generator().manual_seed(SEED))

    def decoded(latents: Tensor) -> Tensor:
        return torch.cat([grey_levels(vae.decode(latent[None]).sample) for latent in latents])

    def drawn(stored: Tensor) -> Tensor:
        pairs = zip(stored.numpy(), normal.numpy(), strict=True)
        return torch.from_numpy(np.stack([posterior_sample(of_image, own) for of_image, own in pairs]))

    mean_image, drawn_image = decoded(mean_BCHW), decoded(drawn(moments))
    figures = {}
    for dtype in DTYPES:
        stored = moments.to(dtype).float()
        of_mean, of_draw = decoded(stored.chunk(2, dim=1)[0]), decoded(drawn(stored))
        figures[str(dtype).removeprefix("torch.")] = {
            "psnr_db": psnr(of_mean, mean_image),
            "largest_difference": float((of_mean - mean_image).abs().max()),
            "draw_psnr_db": psnr(of_draw, drawn_image),
            "draw_largest_difference": float((of_draw - drawn_image).abs().max()),
            "vae_psnr_db": psnr(of_mean, grey_levels(originals)),
            # Of the image and its mirror image.
            "bytes_per_sample": 2 * moments[0].numel() * dtype.itemsize,
        }
    return figures


def _moments(vae: "AutoencoderKL", images_BCHW: Tensor) -> Tensor:
    latents = vae.encode(images_BCHW).latent_dist
    return torch.cat([latents.mean, latents.logvar], dim=1)


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description="Effect of the stored precision of latents on the decoded image.")
    parser.add_argument("--base", default="tiny", help="model whose VAE is used")
    parser.add_argument("--resolution", type=int, help="height and width in pixels; default: the model's")
    arguments = parser.parse_args()
    figures = measure(arguments.base, arguments.resolution)
    pixels = resolution_of(ModelConfig(base=arguments.base, resolution=arguments.resolution))
    title = f"{len(PRESETS) * NUM_IMAGES} simulated images at {pixels} pixels, {arguments.base}"
    head = ("stored as", "PSNR dB", "largest", "draw: PSNR dB", "largest", "vae: PSNR dB", "bytes")
    rows = [
        [name, *(f"{value:.4g}" for value in list(of_dtype.values())[:-1]), f"{of_dtype['bytes_per_sample']}"]
        for name, of_dtype in figures.items()
    ]
    # JSON has no infinity: the PSNR of equal images is null.
    finite = {
        name: {key: round(value, 4) if np.isfinite(value) else None for key, value in of_dtype.items()}
        for name, of_dtype in figures.items()
    }
    facts = {"base": arguments.base, "resolution": pixels, "omp_num_threads": os.environ["OMP_NUM_THREADS"]}
    report("moments", [ReportTable(title, head, rows)], [], {"figures": finite} | facts)


if __name__ == "__main__":
    main()
