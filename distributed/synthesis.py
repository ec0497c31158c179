"""An average of a length that was not kept, put together from those that were.

Every power-function average is a weighted sum of the weights after each step, its profile over the steps. A sum of kept
averages has the sum of their profiles: least squares find the coefficients that come nearest to a wanted profile.
Source: Karras et al. 2024 (arXiv:2312.02696), section 3.2 and appendix C.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed.ema import power_function_exponent

# Added to the squared norm 1 of each profile. Without it, coefficients of a million and of both signs may meet the last
# digits of a profile and blow up the rounding of the stored averages; so, one of 100 counts like an error of 1 %.
RIDGE = 1e-8


@dataclass(frozen=True)
class Profile:
    """How much the weights of each time tau count in the average of `length` after optimizer step `step`.

    p(tau) = (gamma + 1) tau^gamma / step^(gamma + 1) for tau in (0, step], 0 after it; its integral is 1. SlicedEma
    gives the weights after step s the integral of it from s - 1 to s. Source: equation 2 of the paper.
    """

    length: float
    step: int

    @property
    def exponent(self) -> float:
        """Gamma."""
        return power_function_exponent(self.length)


@dataclass(frozen=True)
class Synthesis:
    """The kept averages times `coefficients`, whose sum is 1, added up.

    error: the norm of the difference of the profile to the wanted one, over the norm of the wanted one.
    """

    coefficients: tuple[float, ...]
    error: float


def synthesise(kept: Sequence[Profile], target: Profile) -> Synthesis:
    """Return the sum of `kept` (one at least) that is nearest to `target`.

    The paper leaves the sum of the coefficients free. Here it is 1: weights of a mean far from 0 would shrink or grow
    with it, which harms more than a slightly worse fit of the profile.
    """
    norms = np.sqrt([dot(profile, profile) for profile in kept])
    norm = np.sqrt(dot(target, target))
    # In units of each profile's own norm, so that the system is well scaled.
    gram = np.array([[dot(a, b) for b in kept] for a in kept]) / np.outer(norms, norms)
    projection = np.array([dot(profile, target) for profile in kept]) / (norms * norm)
    integrals = norm / norms
    scaled = _least_squares(gram, projection, integrals)
    squared_error = scaled @ gram @ scaled - 2 * scaled @ projection + 1
    return Synthesis(tuple((scaled * integrals).tolist()), float(np.sqrt(max(squared_error, 0))))


def dot(a: Profile, b: Profile) -> float:
    """Return the integral of the product of two profiles, 1 / steps.

    Of the integral of tau^(gamma_a + gamma_b) up to the earlier step, divided by both normalisations, what is left is
    a power of the ratio of the steps, which cannot overflow.
    """
    first, last = sorted((a, b), key=lambda profile: profile.step)
    factor = (a.exponent + 1) * (b.exponent + 1) / (a.exponent + b.exponent + 1)
    return factor * (first.step / last.step) ** last.exponent / last.step


def _least_squares(
    gram: NDArray[np.float64], projection: NDArray[np.float64], integrals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return x that minimises x G x - 2 x p + RIDGE x x where x . integrals = 1, by a Lagrange multiplier."""
    count = len(projection)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram + RIDGE * np.eye(count)
    system[count, :count] = system[:count, count] = integrals
    solution: NDArray[np.float64] = np.linalg.solve(system, np.append(projection, 1.0))
    return solution[:count]
