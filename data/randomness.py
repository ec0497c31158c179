"""Everything random about a sample, drawn from its position in a stage: the same for any ranks and micro batch."""

import math
from enum import IntEnum
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What the draws are for: no two streams share a number."""

    TRAINING = 0
    VALIDATION = 1


class Draws(NamedTuple):
    """The random numbers of one sample.

    timestep, flip, caption, prompt, hint: uniform in [0, 1). The first is a quantile of the timestep distribution, the
    others decide on the mirror image, on dropping the caption, which of an image's prompts is taken, and on dropping
    the hint.
    noise: standard normal float32, the latents' shape [C, h, w].
    posterior, offset: likewise, [C, h, w] and [C], each value one of 65,536 quantiles.
    """

    timestep: float
    flip: float
    caption: float
    prompt: float
    hint: float
    posterior: NDArray[np.float32]
    noise: NDArray[np.float32]
    offset: NDArray[np.float32]


def draw(
    seed: int,
    stream: Stream,
    position: int,
    shape: tuple[int, int, int],
    noise: NDArray[np.float32] | None = None,
) -> Draws:
    """Return the draws of the sample at `position`: a pure function of the first four arguments.

    seed: in [0, 2^64). shape: of the latents, [C, h, w], an even number of values. noise: written to, of that shape.
    Each sample has a generator of its own, SFC64 of NumPy, whose 128 bits of seed are a hash of the other arguments
    (NumPy's SeedSequence). On CPUs of different kinds the last bit of a normal may differ, as the logarithms and
    cosines of their vector units do.
    """
    # One integer, since a list of them could mean several: NumPy cuts each into as many words as it needs.
    key = np.random.SeedSequence(seed | stream << 64 | position << 96)
    size, channels = math.prod(shape), shape[0]
    assert size % 2 == 0, "normals are made in pairs"
    end_of_noise = 5 + size // 2
    bits = np.random.SFC64(key).random_raw(end_of_noise + (size + channels + 3) // 4)
    timestep, flip, caption, prompt, hint = ((bits[:5] >> np.uint64(11)) * 2.0**-53).tolist()
    noise = np.empty(shape, dtype=np.float32) if noise is None else noise
    _normals(bits[5:end_of_noise].view(np.uint32), out=noise.reshape(-1))
    others = _quantiles().take(bits[end_of_noise:].view(np.uint16)[: size + channels], mode="clip")
    return Draws(timestep, flip, caption, prompt, hint, others[:size].reshape(shape), noise, others[size:])


def _normals(words: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
    """Fill `out` with as many independent standard normals as there are random `words`, an even number.

    Four times as fast as NumPy's standard_normal, on one core with AVX-512. None is further out than 6.8, which one in
    7e10 would be. Source: Box & Muller 1958 (doi:10.1214/aoms/1177706645).
    """
    out[...] = words
    radius, angle = out[: len(words) // 2], out[len(words) // 2 :]
    radius += np.float32(0.5)  # none is 0, of which there is no logarithm
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2 * np.pi * 2.0**-32)
    cosines = np.cos(angle)
    np.sin(angle, out=angle)
    angle *= radius
    radius *= cosines


@cache
def _quantiles() -> NDArray[np.float32]:
    """Return the normal quantiles of 65,536 equally likely steps, widened by 1e-5 to a variance of 1.

    The outermost are at 4.32. That is fine enough for what the VAE's small standard deviation or the offset's weight
    multiplies, and a number costs 16 random bits and a look-up; the noise, which is learnt, has 32 bits and the tails
    of Box and Muller.
    """
    upper = np.array([NormalDist().inv_cdf((number + 0.5) / 2**16) for number in range(2**15, 2**16)])
    upper /= np.sqrt(np.mean(upper**2))
    return np.concatenate([-upper[::-1], upper]).astype(np.float32)
