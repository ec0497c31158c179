"""An average of the weights, as sharded as the master weights are: 4 bytes a parameter divided by the ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor


def power_function_exponent(length: float) -> float:
    """Return gamma, so that the power-function average has relative standard deviation `length`.

    Solves length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    Source: Karras et al. 2024 (arXiv:2312.02696), equation 126 and algorithm 2.
    """
    import numpy as np

    target = length**-2
    roots = np.roots([1, 7, 16 - target, 12 - target])
    return float(roots.real.max())


class ShardedEma:
    """A power-function average of this rank's slices of the master weights.

    It needs no warm-up: the first steps leave it as the window, a fraction of the training so far, moves on.
    """

    def __init__(self, masters: Sequence[Tensor], length: float) -> None:
        self._masters = list(masters)
        self._exponent = power_function_exponent(length)
        self.slices = [master.detach().clone() for master in masters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the master weights after optimizer step `step` (counted from 1)."""
        decay = (1 - 1 / step) ** (self._exponent + 1)
        for average, master in zip(self.slices, self._masters, strict=True):
            average.lerp_(master, 1 - decay)
