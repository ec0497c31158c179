"""The formulas of merging, each on float32 tensors of one shape; what is iterated over is looked at one at a time.

A task vector is what training changed: the tensor of a fine-tuned model less that of the model it was made from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Two directions with a larger cosine are taken for one: sin(angle), which SLERP divides by, is lost in rounding.
PARALLEL_COSINE = 0.9995


def normalised(weights: Sequence[float]) -> list[float]:
    """Return relative weights as shares, which sum to one."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def weighted_sum(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of weight times tensor; with weights that sum to one, the weighted mean.

    Source: Wortsman et al. 2022 (arXiv:2203.05482), model soups; with weights of each block, block-weighted merging,
    which the community of Stable Diffusion made (https://github.com/bbc-mc/sdweb-merge-block-weighted-gui).
    """
    pairs = zip(tensors, weights, strict=True)
    first, weight = next(pairs)
    total = first * weight
    for tensor, weight in pairs:
        total.add_(tensor, alpha=weight)
    return total


def slerp_shares(dot: float, square_a: float, square_b: float, t: float) -> tuple[float, float]:
    """Return the shares of a and b in the point at `t` of the arc between them: t=0 is a, t=1 is b.

    dot, square_a, square_b: the products a.b, a.a and b.b. Vectors along one line (or none) have no arc: the straight
    mean (1 - t, t) is taken.
    Source: Shoemake 1985 (doi:10.1145/325334.325242), of vectors of any length.
    """
    norms = math.sqrt(square_a * square_b)
    cosine = dot / norms if norms > 0 else 1.0
    if not abs(cosine) < PARALLEL_COSINE:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def add_differences(start: Tensor, tensors: Iterable[Tensor], base: Tensor, weights: Sequence[float]) -> Tensor:
    """Return start + the sum of weight * (tensor - base). Where `start` is `base`, it is task arithmetic.

    Source: Ilharco et al. 2022 (arXiv:2212.04089).
    """
    total = start.clone()
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor - base, alpha=weight)
    return total


class Trim:
    """Keeps the largest elements of a vector by magnitude, exactly `num_kept` of them, and sets the others to zero.

    Of equal ones at the border the first are kept. The vector is handed in piece by piece, in order.
    Source: Yadav et al. 2023 (arXiv:2306.01708), TIES, step 1; there the vector is the whole model's, here what the
    caller takes for one (`Merged`: a tensor).
    """

    def __init__(self, magnitudes: Tensor, num_kept: int) -> None:
        """Find the border. magnitudes: of the whole vector, 1-D float32 on the CPU; they are put in another order."""
        values = magnitudes.numpy()
        border = len(values) - num_kept
        # In place and without indices: torch's kthvalue takes three times the memory and ten times as long.
        values.partition(border)
        self._border = float(values[border])
        self._num_equal = num_kept - int(np.count_nonzero(values[border:] > values[border]))

    def __call__(self, piece: Tensor) -> Tensor:
        """Return the next piece, trimmed in place."""
        magnitudes = piece.abs()
        is_equal = magnitudes == self._border
        piece.masked_fill_(magnitudes < self._border, 0)
        num_equal = int(is_equal.sum())
        if num_equal > self._num_equal:
            piece.masked_fill_(is_equal & (is_equal.cumsum(0) > self._num_equal), 0)
        self._num_equal = max(0, self._num_equal - num_equal)
        return piece


def num_kept(numel: int, density: float) -> int:
    """Return how many of `numel` elements a share of `density` is; at least one."""
    return max(1, round(density * numel))


def elected_mean(tasks: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of those task vectors that have the sign of the weighted sum, element by element.

    Zeros, which trimming leaves, have no vote and do not count in the mean; where the sum is zero, so is the result.
    Source: Yadav et al. 2023 (arXiv:2306.01708), TIES, steps 2 and 3.
    """
    sums: list[Tensor] = []  # of the positive elements, of the weights of those, and both of the negative ones
    for task, weight in zip(tasks, weights, strict=True):
        parts = [task.clamp(min=0), (task > 0).to(task.dtype), task.clamp(max=0), (task < 0).to(task.dtype)]
        if sums:
            for total, part in zip(sums, parts, strict=True):
                total.add_(part, alpha=weight)
        else:
            sums = [part.mul_(weight) for part in parts]
    positive, positive_weight, negative, negative_weight = sums
    total = positive + negative
    # Where a sign is elected its weights are above zero; the division by others is not looked at.
    mean = positive.div_(positive_weight).masked_fill_(total <= 0, 0)
    return mean.add_(negative.div_(negative_weight).masked_fill_(total >= 0, 0))


class Drop:
    """Sets each element to zero with probability 1 - density and divides the others by density: its mean stays.

    Source: Yu et al. 2023 (arXiv:2311.03099), DARE; its drop rate p is 1 - density. The vector is handed in piece by
    piece, in order; the draws do not depend on the size of the pieces, nor on other tensors.
    """

    def __init__(self, density: float, seed: int, *keys: str) -> None:
        """Draw from a seed and what tells the vector from others, such as a number of the model and a name."""
        digest = blake2b("\n".join([str(seed), *keys]).encode(), digest_size=16).digest()
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest)))
        self._density = density

    def __call__(self, piece: Tensor) -> Tensor:
        """Return the next piece, dropped and rescaled in place."""
        import torch

        drawn = torch.from_numpy(self._generator.random(piece.numel(), dtype=np.float32))
        return piece.masked_fill_(drawn >= self._density, 0).div_(self._density)
