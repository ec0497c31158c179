"""Losses that ask for the look of speckle and not for its very pixels: local spectra and a patch critic."""

# B batch, K windows, N window size

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this amplitude a frequency of a window counts as silent: about one grey level of 256.
SILENCE = 1e-2


def local_log_spectra(image_B1HW: Tensor, window: int, offset: tuple[int, int]) -> Tensor:
    """Return log amplitudes of half-overlapping Hann windows, [B, K, N, N/2 + 1] float32.

    `offset` (rows, columns) shifts the grid of windows. Drawn anew at each step it leaves no place for a seam: with a
    fixed grid of plain 16x16 patches the decoder learns a pattern that repeats with the grid.
    The two-dimensional likeness of the multi-resolution spectrogram loss of neural vocoders (arXiv:1910.11480).
    """
    rows, columns = offset
    hann_N = torch.hann_window(window, periodic=True, device=image_B1HW.device)
    windows = image_B1HW[:, 0, rows:, columns:].unfold(1, window, window // 2).unfold(2, window, window // 2)
    spectra = torch.fft.rfft2(windows.flatten(1, 2) * torch.outer(hann_N, hann_N), norm="ortho")
    return torch.log(spectra.abs() + SILENCE)


class PatchCritic(nn.Module):
    """Tells real patches from reconstructed ones, at full and at half resolution.

    Two of the patch discriminators of Isola et al. (arXiv:1611.07004), stacked over scales as in pix2pixHD
    (arXiv:1711.11585): one sees 34 pixels and judges grain, the other 68 and judges repetition.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.scales = nn.ModuleList(nn.ModuleList(_critic_layers(channels)) for _ in range(2))

    def forward(self, image_B1HW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the verdicts (above zero: real) and the hidden features, over both scales."""
        verdicts, features = [], []
        for halvings, layers in enumerate(self.scales):
            x = F.avg_pool2d(image_B1HW, 2**halvings)
            assert isinstance(layers, nn.ModuleList)
            for layer in layers[:-1]:
                x = layer(x)
                features.append(x.float())
            verdicts.append(layers[-1](x).float())
        return verdicts, features


def _critic_layers(channels: int) -> list[nn.Module]:
    """Return the layers of one scale: two that halve the resolution, two that do not, and the verdict."""

    def layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, 1), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.2))

    return [
        nn.Sequential(nn.Conv2d(1, channels, 4, 2, 1), nn.LeakyReLU(0.2)),
        layer(channels, 2 * channels, 4, 2),
        layer(2 * channels, 2 * channels, 3, 1),
        layer(2 * channels, 2 * channels, 3, 1),
        nn.Conv2d(2 * channels, 1, 3, 1, 1),
    ]


def hinge_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return the critic's loss. Source: hinge form of arXiv:1705.02894, as used by VQGAN (arXiv:2012.09841)."""
    losses = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def feature_distance(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return the L1 distance of the features, each relative to its real size (as in EnCodec, arXiv:2210.13438)."""
    distances = [F.l1_loss(f, r) / r.abs().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(distances).mean()
