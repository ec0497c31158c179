"""Real images after the built-in VAE are the same pictures, and the same each time."""

import numpy as np
import torch

from data.simulate import simulate
from evaluation.reconstruction import reconstructed
from models.base import ModelConfig
from models.stable_diffusion import load_vae


def test_the_vae_gives_back_the_same_picture_and_the_same_each_time() -> None:
    images = np.stack([simulate("cardiac", 40, index, 128).image for index in range(2)])
    vae = load_vae(ModelConfig(base="tiny"), "cpu", torch.float32)
    again = reconstructed(vae, images)
    assert (again.shape, again.dtype) == (images.shape, np.uint8)
    assert np.array_equal(again, reconstructed(vae, images))
    assert not np.array_equal(again, reconstructed(vae, images, seed=1))

    def coarse(of: np.ndarray) -> np.ndarray:
        return of.reshape(2, 32, 4, 32, 4).mean(axis=(2, 4))

    # models/tiny/README.md: 4 x 4 averages are 0.012 of [-1, 1] off, 1.5 grey levels.
    assert np.abs(coarse(again) - coarse(images)).mean() < 4
    assert np.abs(coarse(again) - coarse(images[::-1])).mean() > 10
