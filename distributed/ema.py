"""Averages of the weights, as divided as the master weights are: 4 bytes a parameter each, divided by the ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

_NAME_PREFIX = "ema@"


def power_function_exponent(length: float) -> float:
    """Return gamma, so that the power-function average has relative standard deviation `length`.

    Solves length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    Source: Karras et al. 2024 (arXiv:2312.02696), equation 126 and algorithm 2.
    """
    import numpy as np

    target = length**-2
    roots = np.roots([1, 7, 16 - target, 12 - target])
    return float(roots.real.max())


class SlicedEma:
    """Power-function averages of this rank's slices of the master weights, one for each length.

    They need no warm-up: the first steps leave them as the window, a fraction of the training so far, moves on.
    """

    def __init__(self, masters: Sequence[Tensor], lengths: Sequence[float]) -> None:
        self._masters = list(masters)
        self._exponents = {average_name(length): power_function_exponent(length) for length in lengths}
        self.slices = {name: [master.detach().float().clone() for master in masters] for name in self._exponents}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the master weights after optimizer step `step` (counted from 1)."""
        for name, exponent in self._exponents.items():
            decay = (1 - 1 / step) ** (exponent + 1)
            for average, master in zip(self.slices[name], self._masters, strict=True):
                average.lerp_(master.float(), 1 - decay)

    @property
    def first(self) -> list[Tensor] | None:
        """The slices of the first length's average; None where there is none."""
        return next(iter(self.slices.values()), None)


def average_name(length: float) -> str:
    """Return the name of an average of this length in checkpoints and logs."""
    return f"{_NAME_PREFIX}{length:g}"


def average_length(name: str) -> float:
    """Return the length of which `average_name` made this name."""
    return float(name.removeprefix(_NAME_PREFIX))
