"""The area under the ROC curve is scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.auc import mean_auc
from evaluation.label_agreement import auc_or_chance


@pytest.mark.parametrize("num_labels", [2, 4])
def test_mean_auc_is_that_of_scikit_learn_with_ties_too(num_labels: int) -> None:
    rng = np.random.default_rng(num_labels)
    numbers = rng.integers(num_labels, size=90)
    found = rng.integers(5, size=(90, num_labels)) / 5 + 0.3 * (numbers[:, None] == np.arange(num_labels))
    each = [roc_auc_score(numbers == number, found[:, number]) for number in range(num_labels)]
    assert mean_auc(found[None], numbers)[0] == pytest.approx(np.mean(each))
    assert mean_auc(found[None, :, ::-1], numbers)[0] != pytest.approx(np.mean(each), abs=0.05)


def test_labels_that_are_not_there_do_not_count() -> None:
    numbers = np.array([0, 0, 2, 2])
    found = np.array([[0.9, 0.9, 0.1], [0.8, 0.1, 0.2], [0.2, 0.4, 0.7], [0.1, 0.3, 0.9]])
    assert mean_auc(found[None], numbers)[0] == 1
    assert np.isnan(mean_auc(found[None], np.zeros(4, int))[0])
    assert auc_or_chance(found, numbers) == 1
    assert auc_or_chance(found, np.zeros(4, int)) == 0.5
