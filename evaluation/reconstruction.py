"""Real images after the VAE: the best that a generator can do that draws in its latents."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.masked_images import grey

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@torch.no_grad()
def reconstructed(vae: "AutoencoderKL", images_NHW: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Return grey images, uint8 [N, H, W], encoded, drawn from the posterior as in training, and decoded."""
    generator = torch.Generator().manual_seed(seed)
    decoded = []
    for image_HW in images_NHW:
        image_HW3 = torch.from_numpy(image_HW)[..., None].expand(-1, -1, 3)
        image_13HW = (image_HW3.movedim(-1, 0)[None].float() / 127.5 - 1).to(vae.device, vae.dtype)
        posterior = vae.encode(image_13HW).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        drawn = vae.decode(posterior.mean + posterior.std * noise).sample
        levels_HW3 = (drawn[0].float().cpu().clamp(-1, 1).movedim(0, -1) + 1) * 127.5
        decoded.append(levels_HW3.round().numpy().astype(np.uint8))
    return grey(np.stack(decoded))
