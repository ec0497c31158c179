"""A stand-in for VAE and text encoder: exact, tiny, and able to fail in the middle."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

FINGERPRINT = {"vae": "v1", "text_encoder": "t1", "tokenizer": "k1", "diffusers": "0.0"}


class FakeEncoder:
    """Means: the image's 8 x 8 averages and a ramp from left to right. Log-variances: minus the means."""

    def __init__(self, fail_after: int | None = None, fingerprint: Mapping[str, str] = FINGERPRINT) -> None:
        self.fingerprint = fingerprint
        self.num_images = 0
        self.embedded: list[str] = []
        self._fail_after = fail_after

    def moments(self, images_BCHW: Tensor) -> Tensor:
        self.num_images += len(images_BCHW)
        if self._fail_after is not None and self.num_images > self._fail_after:
            raise KeyboardInterrupt
        averages = avg_pool2d(images_BCHW, 8)
        ramp = torch.linspace(-1, 1, averages.shape[-1]).expand_as(averages[:, :1])
        mean = torch.cat([averages, ramp], dim=1)
        return torch.cat([mean, -mean], dim=1)

    def embed(self, prompts: list[str]) -> Tensor:
        self.embedded += prompts
        return torch.stack([torch.full((7, 5), float(len(prompt))) for prompt in prompts])
