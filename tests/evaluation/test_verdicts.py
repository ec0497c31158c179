"""What is said of a figure, at and around the bounds."""

import numpy as np
import pytest

from evaluation.feature_distance import Compared, Spread, compare, feature_distances
from evaluation.intervals import Interval
from evaluation.label_agreement import LabelAgreement, LabelScore
from evaluation.verdicts import is_less, of_distance, of_labels


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def spread(value: float, half: float) -> Spread:
    return Spread(value=value, low=value - half, high=value + half)


@pytest.mark.parametrize(
    ("value", "share_above", "num_patients", "level"),
    [
        (1.0, 0.5, 20, "good"),
        (1.4, 0.79, 20, "good"),
        (1.4, 0.8, 20, "fair"),
        (3.2, 1.0, 20, "fair"),
        (3.3, 1.0, 20, "bad"),
        (3.3, 1.0, 10, "bad"),
        (3.3, 1.0, 9, "unknown"),
        (1.0, 0.5, 9, "unknown"),
    ],
)
def test_near_is_by_the_same_halvings_and_far_beyond_twice_what_real_images_reach(
    value: float, share_above: float, num_patients: int, level: str
) -> None:
    found = Compared(
        generated=spread(value, 0.2), real=spread(1.0, 0.5), share_above=share_above, num_patients=num_patients
    )
    assert of_distance(found).level == level


@pytest.mark.parametrize(("num_generated", "level"), [(9, "unknown"), (10, "good"), (None, "good")])
def test_few_generated_images_say_nothing(num_generated: int | None, level: str) -> None:
    found = Compared(
        generated=spread(1.0, 0.2),
        real=spread(1.0, 0.5),
        share_above=0.5,
        num_patients=20,
        num_generated=num_generated,
    )
    assert of_distance(found).level == level


def test_a_wide_interval_that_reaches_chance_is_no_failure() -> None:
    few = LabelScore(num_images=6, balanced_accuracy=interval(0.75, 0.3), auc=interval(0.8, 0.2))
    many = LabelScore(num_images=60, balanced_accuracy=interval(0.8, 0.08), auc=interval(0.9, 0.05))
    verdict = of_labels(LabelAgreement(labels=("a", "b"), chance=0.5, generated=few, real=many))
    assert (verdict.level, verdict.text) == ("unknown", "generated images are too few to tell")


@pytest.mark.parametrize("num_patients", [12, 40])
def test_a_perfect_generator_is_near_and_a_shifted_one_is_not(num_patients: int) -> None:
    levels: dict[float, list[str]] = {0.0: [], 1.0: []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        real, alike = rng.normal(size=(num_patients, 5)), rng.normal(size=(80, 5))
        clusters = [str(number) for number in range(num_patients)]
        for shift, of_shift in levels.items():
            found = compare(alike + shift, real, clusters, feature_distances, seed)
            of_shift += [of_distance(one).level for one in found.values()]
    # Of 16, one may be called farther by chance.
    assert levels[0.0].count("good") >= 15
    assert set(levels[1.0]) <= {"fair", "bad"}


def test_a_difference_counts_where_its_interval_is_without_0() -> None:
    # Of equal halves h, the difference's half is h * sqrt(2).
    assert not is_less(interval(0.6, 0.1), interval(0.74, 0.1))
    assert is_less(interval(0.6, 0.1), interval(0.75, 0.1))
    assert not is_less(interval(0.9, 0.01), interval(0.5, 0.01))


@pytest.mark.parametrize(
    ("generated", "real", "level"),
    [(0.8, 0.8, "good"), (0.65, 0.8, "fair"), (0.55, 0.8, "bad"), (0.2, 0.8, "bad"), (0.8, 0.55, "unknown")],
)
def test_labels_are_judged_only_by_a_classifier_that_can(generated: float, real: float, level: str) -> None:
    scores = [
        LabelScore(num_images=9, balanced_accuracy=interval(of, 0.08), auc=interval(of, 0.1))
        for of in (generated, real)
    ]
    labels = LabelAgreement(labels=("a", "b"), chance=0.5, generated=scores[0], real=scores[1])
    assert of_labels(labels).level == level
