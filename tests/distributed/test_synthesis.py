"""Averages that were not kept, put together from those that were."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distributed.ema import SlicedEma, average_length, average_name, power_function_exponent
from distributed.synthesis import Profile, dot, synthesise

LENGTHS = (0.05, 0.1)
STEPS = (300, 350, 400)

profiles = st.builds(Profile, st.floats(0.01, 0.27), st.integers(1, 10_000))


def sampled(profile: Profile, time_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a profile's values, from the formula as it stands in the paper."""
    gamma = power_function_exponent(profile.length)
    inside = (gamma + 1) * (time_T / profile.step) ** gamma / profile.step
    return np.where(time_T <= profile.step, inside, 0)


def midpoints(last: int, count: int) -> NDArray[np.float64]:
    return (np.arange(count) + 0.5) * last / count


@given(profiles, profiles)
def test_the_dot_product_is_the_integral_of_the_product(a: Profile, b: Profile) -> None:
    # Beyond the earlier step the product is 0; up to it a steep power (gamma is 98 at length 0.01) wants many points.
    last = min(a.step, b.step)
    time_T = midpoints(last, 100_000)
    integral = (sampled(a, time_T) * sampled(b, time_T)).sum() * last / len(time_T)
    assert dot(a, b) == pytest.approx(integral, rel=1e-5, abs=1e-12)
    assert dot(a, b) == dot(b, a)


@pytest.mark.parametrize("length", [0.04, 0.07, 0.09, 0.12])
def test_the_coefficients_are_those_of_brute_force(length: float) -> None:
    kept = [Profile(*pair) for pair in product(LENGTHS, STEPS)]
    target = Profile(length, STEPS[-1])
    time_T = midpoints(STEPS[-1], 40_000)
    columns_TK = np.stack([sampled(profile, time_T) for profile in kept], axis=1)
    wanted_T = sampled(target, time_T)
    # The sum is 1: the last coefficient is what the others leave.
    free_TK = columns_TK[:, :-1] - columns_TK[:, -1:]
    free = np.linalg.lstsq(free_TK, wanted_T - columns_TK[:, -1])[0]
    expected = np.append(free, 1 - free.sum())
    found = synthesise(kept, target)
    # The ridge moves them by 1e-8 times the condition of the system of dot products, 76, and their own size, 1 to 2.
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-5)
    error = np.linalg.norm(columns_TK @ found.coefficients - wanted_T) / np.linalg.norm(wanted_T)
    assert found.error == pytest.approx(error, rel=1e-3)
    assert sum(found.coefficients) == pytest.approx(1, abs=1e-12)


def test_a_kept_average_is_itself() -> None:
    kept = [Profile(*pair) for pair in product(LENGTHS, STEPS)]
    found = synthesise(kept, kept[2])
    np.testing.assert_allclose(found.coefficients, [0, 0, 1, 0, 0, 0], atol=1e-4)
    assert found.error < 1e-5


def test_far_from_what_was_kept_the_error_says_so() -> None:
    kept = [Profile(length, 400) for length in LENGTHS]
    assert synthesise(kept, Profile(0.2, 400)).error > 0.5
    assert synthesise([Profile(0.1, 400)], Profile(0.1, 800)).error > 0.9, "nothing is known of the later half"


def averages_at(steps: Sequence[int], lengths: Sequence[float]) -> dict[Profile, NDArray[np.float64]]:
    """Return the averages of weights on a random walk from a mean of 1, after each of `steps`."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(1000)
    ema = SlicedEma([weights], lengths)
    kept: dict[Profile, NDArray[np.float64]] = {}
    for step in range(1, max(steps) + 1):
        weights += 0.01 * torch.randn(1000, generator=generator)
        ema.update(step)
        if step in steps:
            kept |= {Profile(length, step): ema.slices[average_name(length)][0].double().numpy() for length in lengths}
    return kept


def test_a_synthesised_average_is_near_the_one_that_was_kept() -> None:
    averages = averages_at(STEPS, (*LENGTHS, 0.07))
    target = Profile(0.07, STEPS[-1])
    kept = [profile for profile in averages if profile.length != target.length]
    found = synthesise(kept, target)
    assert found.error < 0.02
    weighted = zip(kept, found.coefficients, strict=True)
    weights = sum(coefficient * averages[profile] for profile, coefficient in weighted)
    distance = np.linalg.norm(weights - averages[target])
    nearest = min(np.linalg.norm(averages[profile] - averages[target]) for profile in kept)
    assert distance < 0.1 * nearest
    assert np.mean(weights) == pytest.approx(np.mean(averages[target]), rel=1e-4), "the mean is kept"


@given(st.floats(0.001, 0.27))
def test_a_name_gives_its_length_back(length: float) -> None:
    name = average_name(length)
    assert average_length(name) == pytest.approx(length, rel=1e-5)  # a name has six digits
    assert average_name(average_length(name)) == name
