"""The area under the ROC curve of one or several networks at once, from ranks."""

# S networks, N images, K classes

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def ranks(probabilities_SNK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each image's rank among all, by network and class: the AUC is the same, and networks are on one scale."""
    ranks_SNK: NDArray[np.float64] = rankdata(probabilities_SNK, axis=1)
    return ranks_SNK


def mean_auc(found_SNK: NDArray[np.float64], numbers_N: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each network's mean over the labels there are of the AUC of each against the others, [S].

    found_SNK: probabilities of the classes, or ranks. numbers_N: the true class of each image. Of two classes it is the
    AUC; NaN where one label alone is there. It is scikit-learn's `roc_auc_score`, by rank sums: a thousand resamples
    take seconds, not minutes. Source: Hanley & McNeil 1982 (doi:10.1148/radiology.143.1.7063747).
    """
    present = np.unique(numbers_N)
    if len(present) < 2:
        return np.full(len(found_SNK), np.nan)
    among_SNK = rankdata(found_SNK[:, :, present], axis=1)
    total = np.zeros(len(found_SNK))
    for column, number in enumerate(present):
        is_label_N = numbers_N == number
        num, num_others = is_label_N.sum(), (~is_label_N).sum()
        total += (among_SNK[:, is_label_N, column].sum(axis=1) - num * (num + 1) / 2) / (num * num_others)
    return total / len(present)
