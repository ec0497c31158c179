"""Networks of two kinds tested on the same patients: intervals, and whether their difference may be chance."""

# S seeds, N images, P patients

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, computed_field
from scipy.stats import permutation_test

from evaluation.intervals import Interval, bootstrap

# The smallest p is twice one in so many.
NUM_PERMUTATIONS = 2000
SIGNIFICANT = 0.05

# What networks of S seeds reach, [S], in the images at `places` [n], from their answers [S, N, ...]; NaN where those
# images do not tell.
Measure = Callable[[NDArray[np.float64], NDArray[np.intp]], NDArray[np.float64]]


class Difference(BaseModel):
    """How much more networks reach than those of the baseline with the same seeds, in the same images.

    gain: with its 95 % interval over patients and seeds. p_patients: of no difference in patients like these, as these
    networks are. p_seeds: of none in networks trained again, as these patients are; None of one seed. num_seeds_better:
    of all. Both are two-sided, and not adjusted for the number of arms.
    """

    model_config = ConfigDict(frozen=True)

    gain: Interval
    p_patients: float
    p_seeds: float | None
    num_seeds_better: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """The difference in a word: one that may be chance of patients or of seeds is none."""
        if self.p_patients >= SIGNIFICANT or self.gain.low <= 0 <= self.gain.high:
            return "not told apart"
        return "better" if self.gain.value > 0 else "worse"


def estimate(answers: NDArray[np.float64], clusters: Sequence[str], measure: Measure, seed: int) -> Interval:
    """Return the mean over seeds of what networks reach, with its 95 % percentile interval.

    Patients are drawn anew, whole, and so are seeds: it is of networks trained again and tested on others. Source: Owen
    2007 (doi:10.1214/07-AOAS122), the pigeonhole bootstrap; never too narrow where there are many of both.
    """
    return _interval(lambda places: measure(answers, places), clusters, len(answers), seed)


def compare(
    answers: NDArray[np.float64], baseline: NDArray[np.float64], clusters: Sequence[str], measure: Measure, seed: int
) -> Difference:
    """Return how networks differ from others; answers of both [S, N, ...], by the same seeds in the same images."""
    assert answers.shape == baseline.shape

    def gains(places: NDArray[np.intp]) -> NDArray[np.float64]:
        return measure(answers, places) - measure(baseline, places)

    gains_S = gains(np.arange(len(clusters)))
    return Difference(
        gain=_interval(gains, clusters, len(answers), seed),
        p_patients=_p_patients(answers, baseline, clusters, measure, seed),
        p_seeds=_p_seeds(gains_S, seed) if len(gains_S) > 1 else None,
        num_seeds_better=int((gains_S > 0).sum()),
    )


def _interval(
    reached: Callable[[NDArray[np.intp]], NDArray[np.float64]], clusters: Sequence[str], num_seeds: int, seed: int
) -> Interval:
    def mean(places: NDArray[np.intp], seeds: NDArray[np.intp]) -> float:
        return float(reached(places)[seeds].mean())

    return bootstrap(mean, [clusters, range(num_seeds)], seed)


def _p_patients(
    answers: NDArray[np.float64], baseline: NDArray[np.float64], clusters: Sequence[str], measure: Measure, seed: int
) -> float:
    """Return p of a permutation test that exchanges what two kinds of network answered, of whole patients.

    If it makes no difference which kind answers, exchanged answers are as likely as those found. Answers must be on one
    scale, as ranks are. Sources: Bandos, Rockette & Gur 2005 (doi:10.1002/sim.2149); ranks, Venkatraman & Begg 1996
    (doi:10.1093/biomet/83.4.835).
    """
    names, of_image = np.unique(np.asarray(clusters), return_inverse=True)
    num_patients, places = len(names), np.arange(len(clusters))
    along = (1, len(clusters)) + (1,) * (answers.ndim - 2)

    def gain(first_P: NDArray[np.float64], _: NDArray[np.float64]) -> float:
        is_exchanged = (first_P >= num_patients)[of_image].reshape(along)
        one = np.where(is_exchanged, baseline, answers)
        other = np.where(is_exchanged, answers, baseline)
        return float((measure(one, places) - measure(other, places)).mean())

    # A number stands for all answers of a kind of network about a patient.
    numbers_P = np.arange(num_patients, dtype=np.float64)
    return _p_exchanged((numbers_P, numbers_P + num_patients), gain, seed)


def _p_seeds(gains_S: NDArray[np.float64], seed: int) -> float:
    """Return p of a permutation test that exchanges two kinds of network, seed by seed."""
    return _p_exchanged((gains_S, np.zeros_like(gains_S)), lambda one, other: float((one - other).mean()), seed)


def _p_exchanged(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]], statistic: Callable[..., float], seed: int
) -> float:
    # All exchanges are made where they are fewer than that.
    found = permutation_test(
        pair,
        statistic,
        permutation_type="samples",
        vectorized=False,
        n_resamples=NUM_PERMUTATIONS - 1,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
