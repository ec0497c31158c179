"""Figures with their 95 % intervals: of shares, and of anything else by drawing patients anew."""

import math
import warnings
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000


class Interval(BaseModel):
    """A figure and the bounds of its 95 % interval; NaN where there is none."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


def share(count: int, of: int) -> Interval:
    """Return a share with Wilson's interval (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    interval = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(value=count / of, low=float(interval.low), high=float(interval.high))


def bootstrap(statistic: Callable[..., float], populations: Sequence[Sequence[Hashable]], seed: int) -> Interval:
    """Return a statistic with its percentile interval over populations that are drawn anew, apart from each other.

    populations: of each the cluster of every member, which is drawn whole, as images of one patient are alike; one of a
    single cluster stays as it is. statistic: takes the places of the members drawn, int64, an argument a population.
    Resamples in which it is NaN are left out; it may be infinite. NaN where a population is empty.
    Sources: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; clusters, Davison & Hinkley 1997,
    section 3.8; two populations that cross, as patients and seeds, Owen 2007 (doi:10.1214/07-AOAS122).
    """
    if not all(len(clusters) for clusters in populations):
        return Interval(value=math.nan, low=math.nan, high=math.nan)
    members = [_members(clusters) for clusters in populations]
    varied = [number for number, of in enumerate(members) if len(of) > 1]
    every = [np.arange(len(clusters)) for clusters in populations]
    value = float(statistic(*every))
    if not varied:
        return Interval(value=value, low=value, high=value)

    def of_drawn(*drawn: NDArray[np.intp]) -> float:
        places = list(every)
        for number, chosen in zip(varied, drawn, strict=True):
            places[number] = np.concatenate([members[number][place] for place in chosen])
        return float(statistic(*places))

    # What scipy itself makes of values that are not finite is not used.
    with np.errstate(invalid="ignore"), warnings.catch_warnings(action="ignore", category=stats.DegenerateDataWarning):
        found = stats.bootstrap(
            [np.arange(len(members[number])) for number in varied],
            of_drawn,
            n_resamples=NUM_RESAMPLES,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    told = found[~np.isnan(found)]
    if not len(told):
        return Interval(value=value, low=math.nan, high=math.nan)
    # Values between two may not exist: of a finite and an infinite distance.
    low, high = np.quantile(told, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
    return Interval(value=value, low=float(low), high=float(high))


def _members(clusters: Sequence[Hashable]) -> list[NDArray[np.intp]]:
    _, of_member = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(of_member, kind="stable")
    return np.split(order, np.cumsum(np.bincount(of_member))[:-1])
