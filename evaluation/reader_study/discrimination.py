"""How well one reader tells generated images from real ones."""

# N images

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import norm

from evaluation.intervals import CONFIDENCE, Interval, bootstrap, share
from evaluation.reader_study.answers import Answers


class ReaderScore(BaseModel):
    """One reader. Generated images are the signal: sensitivity is the share of them that was held for generated.

    bias: criterion c; below 0 the reader says generated too readily, above 0 real. auc: of the confidence.
    median_seconds: on an image.
    """

    model_config = ConfigDict(frozen=True)

    reader: str
    accuracy: Interval
    sensitivity: Interval
    specificity: Interval
    d_prime: Interval
    bias: float
    auc: Interval
    median_seconds: float


def score_reader(answers: Answers, is_generated_N: NDArray[np.bool_], seed: int = 0) -> ReaderScore:
    """Return how well a reader did. is_generated_N: the truth, with images of both kinds. seed: of the resampling."""
    from sklearn.metrics import roc_auc_score

    says_N = answers.says_generated_N
    hits, num_generated = int(says_N[is_generated_N].sum()), int(is_generated_N.sum())
    false_alarms, num_real = int(says_N[~is_generated_N].sum()), int((~is_generated_N).sum())
    assert num_generated
    assert num_real
    correct = hits + num_real - false_alarms

    def auc(places: NDArray[np.int64]) -> float:
        return float(roc_auc_score(is_generated_N[places], -answers.confidence_N[places]))

    d_prime, bias = detection(hits, num_generated, false_alarms, num_real)
    return ReaderScore(
        reader=answers.reader,
        accuracy=share(correct, num_generated + num_real),
        sensitivity=share(hits, num_generated),
        specificity=share(num_real - false_alarms, num_real),
        d_prime=d_prime,
        bias=bias,
        auc=resampled(auc, is_generated_N, seed),
        median_seconds=float(np.median(answers.seconds_N)),
    )


def detection(hits: int, num_signals: int, false_alarms: int, num_noises: int) -> tuple[Interval, float]:
    """Return d' = z(H) - z(F) with its interval, and the criterion c = -(z(H) + z(F)) / 2.

    Rates are log-linear, (count + 0.5) / (number + 1), so that those of 0 and 1 give a number. Sources: Hautus 1995
    (doi:10.3758/BF03203619); the variance: Gourevitch & Galanter 1967 (doi:10.1007/BF02289402).
    """
    rates = np.array([(hits + 0.5) / (num_signals + 1), (false_alarms + 0.5) / (num_noises + 1)])
    numbers = np.array([num_signals, num_noises])
    scores = norm.ppf(rates)
    d_prime = float(scores[0] - scores[1])
    error = float(np.sqrt((rates * (1 - rates) / (numbers * norm.pdf(scores) ** 2)).sum()))
    reach = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    return Interval(value=d_prime, low=d_prime - reach, high=d_prime + reach), -float(scores.sum()) / 2


def resampled(
    statistic: Callable[[NDArray[np.int64]], float], is_generated_N: NDArray[np.bool_], seed: int
) -> Interval:
    """Return a statistic of images with its percentile bootstrap interval, over images, real and generated apart.

    statistic: of the images' places; nan where it has no value, as a resample's kappa if all its answers are the same.
    """
    kinds = [np.flatnonzero(is_generated_N), np.flatnonzero(~is_generated_N)]

    def of_kinds(*drawn: NDArray[np.int64]) -> float:
        return statistic(np.concatenate([places[own] for places, own in zip(kinds, drawn, strict=True)]))

    return bootstrap(of_kinds, [range(len(places)) for places in kinds], seed)
