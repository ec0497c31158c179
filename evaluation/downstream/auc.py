"""The area under the ROC curve of several seeds' networks at once, from ranks."""

# S seeds, N images, n of them, K classes

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from evaluation.downstream.paired import Measure


def ranks(probabilities_SNK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each image's rank among all, by seed and class: the AUC is the same, and seeds are on one scale."""
    ranks_SNK: NDArray[np.float64] = rankdata(probabilities_SNK, axis=1)
    return ranks_SNK


def auc_of(labels: Sequence[str], classes: Sequence[str]) -> Measure:
    """Return what measures AUC: the mean over the labels there are of each against the others.

    Of two classes that is the AUC. NaN where one label alone is there. It is scikit-learn's `roc_auc_score`, by rank
    sums, of all seeds at once: a thousand resamples of six seeds take seconds, not minutes. Source: Hanley & McNeil
    1982 (doi:10.1148/radiology.143.1.7063747).
    """
    numbers_N = np.array([list(classes).index(label) for label in labels])

    def measure(ranks_SNK: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.float64]:
        numbers_n = numbers_N[places]
        present = np.unique(numbers_n)
        if len(present) < 2:
            return np.full(len(ranks_SNK), np.nan)
        among_SnK = rankdata(ranks_SNK[:, places][:, :, present], axis=1)
        total = np.zeros(len(ranks_SNK))
        for column, number in enumerate(present):
            is_label = numbers_n == number
            num, num_others = is_label.sum(), (~is_label).sum()
            total += (among_SnK[:, is_label, column].sum(axis=1) - num * (num + 1) / 2) / (num * num_others)
        return total / len(present)

    return measure
