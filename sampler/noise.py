"""The noise that a seed stands for: the same with every numpy, on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_SEED = 2**63 - 1


def noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return independent standard normal values.

    numpy promises the bits of Philox for ever, but not how its own normal values come from them; so they are made here.
    Sources: Salmon et al. 2011 (doi:10.1145/2063384.2063405), Philox; Box & Muller 1958.
    """
    count = int(np.prod(shape))
    bits = np.random.Philox(key=seed).random_raw(2 * ((count + 1) // 2))
    uniform = ((bits >> np.uint64(11)) + 0.5) / 2.0**53  # never 0
    radius, angle = np.sqrt(-2 * np.log(uniform[0::2])), 2 * np.pi * uniform[1::2]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[:count].astype(np.float32).reshape(shape)
