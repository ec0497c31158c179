"""What is said of a figure, at and around the bounds."""

import pytest

from evaluation.feature_distance import Compared, Interval
from evaluation.label_agreement import LabelAgreement, LabelScore
from evaluation.verdicts import is_less, of_distance, of_labels


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


@pytest.mark.parametrize(("value", "level"), [(1.0, "good"), (1.5, "good"), (1.6, "fair"), (3.2, "fair"), (3.3, "bad")])
def test_near_is_within_what_real_images_reach_and_far_beyond_twice_that(value: float, level: str) -> None:
    compared = Compared(generated=interval(value, 0.2), real=interval(1.0, 0.5), share_above=0.5)
    assert of_distance(compared).level == level


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
    scores = [LabelScore(num_images=9, accuracy=interval(of, 0.08), auc=None) for of in (generated, real)]
    labels = LabelAgreement(labels=("a", "b"), chance=0.5, generated=scores[0], real=scores[1])
    assert of_labels(labels).level == level
