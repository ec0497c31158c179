"""How far two sets are apart: against plain loops, and where the answer is known."""

import numpy as np
import pytest

from evaluation.realism import MIN_CLUSTERS, Scale, kid, real_against_real, realism
from evaluation.ultrasound_statistics import STATISTICS

NUM = len(STATISTICS)


def drawn(num: int, seed: int, shift: float = 0.0) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(shift, 1, (num, NUM))


def test_kid_is_the_plain_double_sum() -> None:
    one, other = drawn(5, 0), drawn(7, 1, 0.5)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / NUM + 1) ** 3)

    within = sum(kernel(one[i], one[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    within_other = sum(kernel(other[i], other[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    between = sum(kernel(one[i], other[j]) for i in range(5) for j in range(7)) / (5 * 7)
    assert kid(one, other) == pytest.approx(within + within_other - 2 * between)


def test_kid_is_unbiased() -> None:
    found = [kid(drawn(8, 2 * seed), drawn(8, 2 * seed + 1)) for seed in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(400)
    assert min(found) < 0


def test_the_distance_of_a_shift_is_the_shift() -> None:
    real = drawn(40, 0)
    found = realism(real + 2, real)
    assert found.distance == pytest.approx(2)
    assert found.statistics == pytest.approx(dict.fromkeys(STATISTICS, 2))
    moved = real.copy()
    moved[:, 3] += 7
    assert realism(moved, real).distance == pytest.approx(7 / NUM)
    assert realism(real, real).distance == 0


def test_the_distance_of_equal_numbers_is_that_of_sorted_values() -> None:
    one, other = drawn(9, 0), drawn(9, 1, 0.3)
    assert realism(one, other).distance == pytest.approx(np.abs(np.sort(one, 0) - np.sort(other, 0)).mean())


def test_the_scale_is_that_of_the_training_images() -> None:
    training = 5 + 3 * drawn(500, 0)
    training[:, 0] = 7
    features = Scale(training)(training)
    assert features.mean(0) == pytest.approx(np.zeros(NUM), abs=1e-9)
    assert features.std(0)[1:] == pytest.approx(np.ones(NUM - 1))
    assert features[:, 0] == pytest.approx(np.zeros(500)), "a statistic that does not vary stays as it is"


def test_real_against_real_is_the_same_for_a_seed_and_parts_no_patient() -> None:
    # Each patient has a value of its own: were its images parted, both halves would be alike.
    clusters = [f"patient {number // 10}" for number in range(10 * MIN_CLUSTERS)]
    real = np.repeat(drawn(MIN_CLUSTERS, 0, 0), 10, axis=0)
    found = real_against_real(real, clusters, seed=3)
    assert found == real_against_real(real, clusters, seed=3)
    assert found != real_against_real(real, clusters, seed=4)
    parted = real_against_real(real, [str(number) for number in range(len(real))], seed=3)
    assert found.distance > 2 * parted.distance


def test_real_against_real_is_what_more_images_of_the_same_kind_are_near() -> None:
    real = drawn(64, 0)
    reference = real_against_real(real, [str(number // 2) for number in range(64)], seed=0)
    alike, other = realism(drawn(64, 1), real), realism(drawn(64, 1, 1), real)
    assert 0.5 * reference.distance < alike.distance < 1.5 * reference.distance
    assert other.distance > 3 * reference.distance
    assert abs(alike.kid) < 0.1 * other.kid
