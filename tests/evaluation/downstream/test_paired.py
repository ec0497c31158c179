"""Intervals and tests of networks on the same patients: what is the same, what is better, what is chance."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from evaluation.auc import ranks
from evaluation.downstream.labelled_images import auc_of
from evaluation.downstream.paired import Difference, compare, estimate
from evaluation.intervals import Interval

NUM_SEEDS, NUM_PATIENTS, CLASSES = 4, 30, ("benign", "malignant", "normal")
LABELS = [CLASSES[number % 3] for number in range(NUM_PATIENTS)]
PATIENTS = [f"patient-{number}" for number in range(NUM_PATIENTS)]


def mean(values_SN: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values_SN[:, places].mean(axis=1)
    return found


def answers(skill: float, seed: int, labels: list[str] = LABELS) -> NDArray[np.float64]:
    """Probabilities [S, N, K] that know the label the better, the larger the skill."""
    rng = np.random.default_rng(seed)
    is_label = np.array([[name == label for name in CLASSES] for label in labels])
    odds = np.exp(rng.normal(0, 1, (NUM_SEEDS, *is_label.shape)) + skill * is_label)
    probabilities: NDArray[np.float64] = odds / odds.sum(axis=2, keepdims=True)
    return probabilities


@pytest.mark.parametrize("digits", [1, 6])
def test_auc_is_that_of_scikit_learn_ties_included(digits: int) -> None:
    probabilities = answers(0.7, 0).round(digits)
    found = auc_of(LABELS, CLASSES)(ranks(probabilities), np.arange(NUM_PATIENTS))
    for seed in range(NUM_SEEDS):
        each = [
            roc_auc_score([label == name for label in LABELS], probabilities[seed, :, number])
            for number, name in enumerate(CLASSES)
        ]
        assert found[seed] == pytest.approx(np.mean(each))


def test_auc_in_some_of_the_images_is_that_of_their_labels() -> None:
    probabilities = answers(0.7, 0)
    measure = auc_of(LABELS, CLASSES)
    two = np.array([place for place, label in enumerate(LABELS) if label != "normal"])
    expected = [
        np.mean([roc_auc_score([LABELS[i] == name for i in two], of_seed[two, number]) for number, name in ((0, "benign"), (1, "malignant"))])  # noqa: E501
        for of_seed in probabilities
    ]  # fmt: skip
    assert measure(ranks(probabilities), two) == pytest.approx(expected)
    assert np.isnan(measure(ranks(probabilities), np.array([0, 3, 6]))).all(), "one label does not tell"


def test_the_same_answers_are_no_difference() -> None:
    of_arm = ranks(answers(1, 0))
    found = compare(of_arm, of_arm, PATIENTS, auc_of(LABELS, CLASSES), 0)
    assert found.gain == Interval(value=0, low=0, high=0)
    assert found.p_patients == found.p_seeds == 1
    assert found.num_seeds_better == 0
    assert found.verdict == "not told apart"


def test_what_is_clearly_better_has_a_small_p_and_the_other_way_round_is_worse() -> None:
    measure = auc_of(LABELS, CLASSES)
    good, poor = ranks(answers(3, 1)), ranks(answers(0.2, 2))
    better, worse = compare(good, poor, PATIENTS, measure, 0), compare(poor, good, PATIENTS, measure, 0)
    assert better.p_patients < 0.005
    assert better.p_seeds == 2 / 2**NUM_SEEDS, "as small as four seeds can say"
    assert better.gain.low > 0.1
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert worse.gain.value == pytest.approx(-better.gain.value)
    assert (better.num_seeds_better, worse.num_seeds_better) == (NUM_SEEDS, 0)


def test_chance_is_seldom_taken_for_a_difference() -> None:
    rng = np.random.default_rng(0)
    patients = PATIENTS[:10]
    small = 0
    for repeat in range(60):
        # What seeds share: patients are easy or hard for one kind of network, by chance.
        one, other = (rng.normal(0, 1, 10) + rng.normal(0, 0.3, (NUM_SEEDS, 10)) for _ in range(2))
        small += compare(one, other, patients, mean, repeat).p_patients < 0.05
    # 60 tests at 5 %: 3 are expected, 9 or more have a chance of 0.3 %.
    assert small <= 8


def test_a_patient_of_many_images_counts_once() -> None:
    rng = np.random.default_rng(3)
    one = rng.normal(0.5, 1, (NUM_SEEDS, 8))
    other = rng.normal(0, 1, (NUM_SEEDS, 8))
    few = compare(one, other, PATIENTS[:8], mean, 0)
    repeated = compare(one.repeat(9, axis=1), other.repeat(9, axis=1), list(np.repeat(PATIENTS[:8], 9)), mean, 0)
    assert repeated.p_patients == few.p_patients
    assert (repeated.gain.low, repeated.gain.high) == pytest.approx((few.gain.low, few.gain.high))
    apart = compare(one.repeat(9, axis=1), other.repeat(9, axis=1), [str(number) for number in range(72)], mean, 0)
    assert apart.gain.high - apart.gain.low < 0.8 * (few.gain.high - few.gain.low), "as if they were new patients"


def test_the_interval_is_of_other_seeds_too() -> None:
    # Every patient is found alike; the seeds differ.
    reached = np.repeat(np.array([[0.2], [0.4], [0.6], [0.8]]), 12, axis=1)
    found = estimate(reached, PATIENTS[:12], mean, 0)
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.35 < 0.65 < found.high


def test_one_seed_has_no_test_over_seeds() -> None:
    one, other = ranks(answers(1, 0))[:1], ranks(answers(0, 1))[:1]
    assert compare(one, other, PATIENTS, auc_of(LABELS, CLASSES), 0).p_seeds is None


def test_a_verdict_needs_patients_and_seeds() -> None:
    wide, narrow = Interval(value=0.1, low=-0.02, high=0.2), Interval(value=0.1, low=0.02, high=0.2)

    def verdict(gain: Interval, p: float) -> str:
        return Difference(gain=gain, p_patients=p, p_seeds=0.03, num_seeds_better=6).verdict

    assert verdict(narrow, 0.01) == "better"
    assert verdict(wide, 0.01) == verdict(narrow, 0.06) == "not told apart"
