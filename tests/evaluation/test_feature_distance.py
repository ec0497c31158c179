"""The Frechet distance against its closed form, and what stands beside it."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from evaluation.feature_distance import Compared, compare, feature_distances, frechet_distance
from evaluation.realism import MIN_CLUSTERS


def drawn(num: int, seed: int, shift: float = 0.0, dimensions: int = 6) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, 1, (num, dimensions))


def compared(
    generated: NDArray[np.float64], real: NDArray[np.float64], clusters: list[str], seed: int
) -> dict[str, Compared]:
    return compare(generated, real, clusters, feature_distances, seed)


def exactly(mean: NDArray[np.float64], covariance: NDArray[np.float64], num: int, seed: int) -> NDArray[np.float64]:
    """Points whose own mean and covariance are these, to rounding."""
    points = drawn(num, seed, dimensions=len(mean))
    points -= points.mean(0)
    white = points @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(points.T)))).T
    return white @ np.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize(("num", "num_other"), [(40, 40), (7, 90), (300, 8)])
def test_frechet_distance_is_the_closed_form_of_gaussians(num: int, num_other: int) -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2, 5))
    roots = rng.normal(size=(2, 5, 5))
    one, other = (root @ root.T + np.eye(5) for root in roots)
    cross = sqrtm(one @ other).real
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(one + other - 2 * cross)
    found = frechet_distance(exactly(means[0], one, num, 1), exactly(means[1], other, num_other, 2))
    assert found == pytest.approx(wanted)


def test_frechet_distance_of_one_dimension_is_known() -> None:
    # (m1 - m2)^2 + (s1 - s2)^2
    found = frechet_distance(
        exactly(np.array([1.0]), np.array([[4.0]]), 50, 0), exactly(np.array([-2.0]), np.array([[25.0]]), 60, 1)
    )
    assert found == pytest.approx(9 + 9)


def test_frechet_distance_where_images_are_fewer_than_features() -> None:
    one, other = drawn(4, 0, dimensions=30), drawn(9, 1, dimensions=30)
    assert frechet_distance(one, one[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 2) == pytest.approx(4 * 30)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    # What sqrtm finds of covariances that lack most of their rank, with a little added.
    covariances = [np.cov(of.T) + 1e-9 * np.eye(30) for of in (one, other)]
    plain = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert frechet_distance(one, other) == pytest.approx(plain, rel=1e-3)


def test_images_of_the_same_kind_are_as_near_as_real_ones() -> None:
    clusters = [str(number // 2) for number in range(80)]
    real = drawn(80, 0)
    alike = compared(drawn(200, 1), real, clusters, seed=0)
    other = compared(drawn(200, 1, 1.0), real, clusters, seed=0)
    for name in ("fid", "kid"):
        same, far = alike[name], other[name]
        assert same.real.low < same.generated.value < same.real.high
        assert 0.1 < same.share_above < 0.9
        assert far.generated.low > far.real.high
        assert far.share_above == 1
        assert far.real == same.real
        assert far.num_patients == 40


def test_patients_are_not_parted_and_the_seed_counts() -> None:
    # A patient has one value: were the images parted, both halves would be alike.
    clusters = [f"patient {number // 10}" for number in range(10 * MIN_CLUSTERS)]
    real = np.repeat(drawn(MIN_CLUSTERS, 0), 10, axis=0)
    whole = compared(real, real, clusters, seed=3)
    assert whole == compared(real, real, clusters, seed=3)
    assert whole != compared(real, real, clusters, seed=4)
    parted = compared(real, real, [str(number) for number in range(len(real))], seed=3)
    assert whole["fid"].real.value > 2 * parted["fid"].real.value


def test_fewer_generated_images_are_compared_with_as_few_real_ones() -> None:
    found = compared(drawn(10, 1), drawn(80, 0), [str(number) for number in range(80)], seed=0)
    assert found["fid"].real.low < found["fid"].generated.value < found["fid"].real.high, (
        "as far as few are, and no farther"
    )
