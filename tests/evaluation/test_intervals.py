"""Intervals hold what they say they do, and whole patients are drawn, of whatever populations."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from evaluation.intervals import Interval, bootstrap, share


def of_mean(values: NDArray[np.float64], clusters: Sequence[str], seed: int) -> Interval:
    return bootstrap(lambda places: float(np.mean(values[places])), [clusters], seed)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for number in range(60):
        values = rng.normal(size=80)
        estimate = of_mean(values, [str(place) for place in range(80)], number)
        covered += estimate.low <= 0 <= estimate.high
    # 95 % of 60 are 57; 4 below are more than two standard deviations.
    assert covered >= 53


def test_copies_of_a_patients_image_make_no_interval_narrower() -> None:
    values = np.random.default_rng(1).random(30)
    clusters = [str(place) for place in range(30)]
    alone = of_mean(values, clusters, 0)
    copied = of_mean(values.repeat(8), [name for name in clusters for _ in range(8)], 0)
    # The clusters are drawn alike; only the order of the sums differs.
    assert (copied.value, copied.low, copied.high) == pytest.approx((alone.value, alone.low, alone.high), rel=1e-12)
    taken_for_patients = of_mean(values.repeat(8), [str(place) for place in range(240)], 0)
    assert taken_for_patients.high - taken_for_patients.low < 0.6 * (alone.high - alone.low)


def test_an_interval_is_a_function_of_the_seed() -> None:
    values, clusters = np.random.default_rng(2).random(20), [str(place // 2) for place in range(20)]
    assert of_mean(values, clusters, 5) == of_mean(values, clusters, 5)
    assert of_mean(values, clusters, 5) != of_mean(values, clusters, 6)
    assert math.isnan(of_mean(np.empty(0), (), 0).value)


def test_images_that_are_their_own_patients_have_scipys_interval() -> None:
    values = np.random.default_rng(3).normal(size=50)
    found = of_mean(values, [str(place) for place in range(50)], 0)
    plain = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1))
    # Of a thousand resamples, a bound is known to about a tenth of the standard error, 0.14 here.
    bounds = (plain.confidence_interval.low, plain.confidence_interval.high)
    assert (found.low, found.high) == pytest.approx(bounds, abs=0.03)


def test_populations_are_drawn_apart_and_a_single_one_is_held() -> None:
    values = np.arange(6.0)[:, None] + 10 * np.arange(4.0)

    def width(populations: Sequence[Sequence[object]]) -> float:
        found = bootstrap(lambda rows, columns: float(values[np.ix_(rows, columns)].mean()), populations, 0)
        assert found.low <= found.value <= found.high
        return found.high - found.low

    one, both, nothing = width([range(6), [0] * 4]), width([range(6), range(4)]), width([[0] * 6, [0] * 4])
    assert nothing == 0
    assert one > 1
    assert both > 3 * one


def test_resamples_without_a_value_are_left_out_and_infinity_is_a_value() -> None:
    values = np.array([1.0, 2.0, 3.0, math.inf])
    found = bootstrap(lambda places: float(np.sort(values[places])[len(places) // 2]), [range(4)], 0)
    assert found.high == math.inf
    assert found.low in values
    half = bootstrap(lambda places: math.nan if 0 in places else float(places.mean()), [range(3)], 0)
    assert math.isnan(half.value)
    assert 1 <= half.low < half.high <= 2


def test_wilsons_interval_of_nothing_found_is_above_0() -> None:
    found = share(0, 40)
    assert (found.value, found.low) == (0, 0)
    # z^2 / (n + z^2)
    assert found.high == pytest.approx(1.96**2 / (40 + 1.96**2), rel=1e-3)
