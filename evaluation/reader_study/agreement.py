"""Whether the readers of a study say the same, right or wrong."""

# N images, R readers

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evaluation.intervals import Interval
from evaluation.reader_study.answers import Answers
from evaluation.reader_study.discrimination import resampled


class Agreement(BaseModel):
    """Chance-corrected agreement on generated or real: 1 all the same, 0 as by chance.

    kappa: Cohen's of two readers, Fleiss' of more; nan where all answers are the same, since chance agrees as well.
    """

    model_config = ConfigDict(frozen=True)

    readers: tuple[str, ...]
    kappa: Interval


def agreements(answers: Sequence[Answers], is_generated_N: NDArray[np.bool_], seed: int = 0) -> list[Agreement]:
    """Return Cohen's kappa of each pair of readers, and, of three or more, Fleiss' kappa of all, last."""
    found = []
    for one, other in combinations(answers, 2):

        def cohen(places: NDArray[np.int64], one: Answers = one, other: Answers = other) -> float:
            return cohen_kappa(one.says_generated_N[places], other.says_generated_N[places])

        found.append(Agreement(readers=(one.reader, other.reader), kappa=resampled(cohen, is_generated_N, seed)))
    if len(answers) > 2:
        says_NR = np.stack([of.says_generated_N for of in answers], axis=1)
        kappa = resampled(lambda places: fleiss_kappa(says_NR[places]), is_generated_N, seed)
        found.append(Agreement(readers=tuple(of.reader for of in answers), kappa=kappa))
    return found


def cohen_kappa(one_N: NDArray[np.bool_], other_N: NDArray[np.bool_]) -> float:
    """Return Cohen's kappa (1960, doi:10.1177/001316446002000104); nan where both always say the same one thing."""
    from sklearn.metrics import cohen_kappa_score

    if (one_N == one_N[0]).all() and (other_N == one_N[0]).all():
        return math.nan
    return float(cohen_kappa_score(one_N, other_N))


def fleiss_kappa(says_NR: NDArray[np.bool_]) -> float:
    """Return the agreement of R readers in two categories; nan where all of them always say the same one thing.

    Source: Fleiss 1971 (doi:10.1037/h0031619), equations 1 to 9.
    """
    num_readers = says_NR.shape[1]
    counts_N2 = np.stack([says_NR.sum(1), (~says_NR).sum(1)], axis=1)
    observed = ((counts_N2**2).sum(1) - num_readers).mean() / (num_readers * (num_readers - 1))
    by_chance = float((counts_N2.mean(0) / num_readers) @ (counts_N2.mean(0) / num_readers))
    return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan
