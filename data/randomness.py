"""Everything random about a sample, drawn from its position in the run: the same for any ranks and micro batch."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What the draws are for: no two streams share a number."""

    TRAINING = 0
    VALIDATION = 1


@dataclass(frozen=True)
class Draws:
    """The random numbers of one sample.

    timestep, flip, caption, prompt: uniform in [0, 1). The first is a quantile of the timestep distribution, the others
    decide on the mirror image, on dropping the caption, and which of an image's prompts is taken.
    posterior, noise: standard normal float32, the latents' shape [C, h, w].
    """

    timestep: float
    flip: float
    caption: float
    prompt: float
    posterior: NDArray[np.float32]
    noise: NDArray[np.float32]


def draw(seed: int, stream: Stream, position: int, shape: tuple[int, int, int]) -> Draws:
    """Return the draws of the sample at `position`, from a counter-based generator keyed by the other arguments.

    seed: in [0, 2^64).
    shape: of the latents, [C, h, w]. Source: Philox, Salmon et al. 2011 (doi:10.1145/2063384.2063405).
    """
    # Two words of key; the position takes the counter's two upper words, which a sample's draws never reach.
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=[0, 0, position, 0])
    generator = np.random.Generator(bits)
    timestep, flip, caption, prompt = generator.random(4)
    return Draws(
        timestep=float(timestep),
        flip=float(flip),
        caption=float(caption),
        prompt=float(prompt),
        posterior=generator.standard_normal(shape, dtype=np.float32),
        noise=generator.standard_normal(shape, dtype=np.float32),
    )
