"""How far a set of generated images is from real ones, in the statistics of ultrasound images."""

# N images, M other images, D statistics

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import wasserstein_distance

from evaluation.ultrasound_statistics import STATISTICS

# Fewer cannot be halved into two sets of two, which the unbiased estimate needs.
MIN_CLUSTERS = 4
NUM_HALVINGS = 50


class Realism(BaseModel):
    """How far two sets of images are apart; 0 is alike.

    distance: mean over the statistics of how far their distributions are apart, in standard deviations of real images.
    kid: of all statistics together; an estimate, which may be below 0. statistics: what `distance` is the mean of.
    """

    model_config = ConfigDict(frozen=True)

    distance: float
    kid: float
    statistics: dict[str, float]


class Scale:
    """Makes of statistics [N, D] the features that sets are compared by: standardised by real training images.

    is_floored: a deviation below the median of all counts as that. Of a network's features, some hardly ever differ
    from 0, and divided by their own deviation one image would outweigh all others.
    """

    def __init__(self, training_ND: NDArray[np.float64], *, is_floored: bool = False) -> None:
        self._mean_D, spread_D = training_ND.mean(0), training_ND.std(0)
        if is_floored:
            spread_D = np.maximum(spread_D, np.median(spread_D))
        self._spread_D = np.where(spread_D > 0, spread_D, 1)

    def __call__(self, statistics_ND: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the features, [N, D], in standard deviations of the training images, or floors of these."""
        features_ND: NDArray[np.float64] = (statistics_ND - self._mean_D) / self._spread_D
        return features_ND


def realism(features_ND: NDArray[np.float64], real_MD: NDArray[np.float64]) -> Realism:
    """Return how far images are from real ones, by the features of both; see `Scale`.

    The Wasserstein-1 distance of two samples of one distribution is above 0, the more the fewer they are: compare with
    `real_against_real`. Source: Villani 2009 (doi:10.1007/978-3-540-71050-9), remark 6.5.
    """
    distances = [float(wasserstein_distance(one, other)) for one, other in zip(features_ND.T, real_MD.T, strict=True)]
    return Realism(
        distance=float(np.mean(distances)),
        kid=kid(features_ND, real_MD),
        statistics=dict(zip(STATISTICS, distances, strict=True)),
    )


def real_against_real(real_ND: NDArray[np.float64], clusters: Sequence[str], seed: int) -> Realism:
    """Return the realism of one half of real images against the other: the mean of many random halvings.

    Clusters stay whole, as images of one patient are alike; there must be `MIN_CLUSTERS`. A half has fewer images than
    the whole, so the distance is somewhat above what as many generated images as there are real ones could reach.
    """
    names = np.asarray(clusters)
    distinct = np.unique(names)
    assert len(distinct) >= MIN_CLUSTERS
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(NUM_HALVINGS):
        is_in_half = np.isin(names, generator.permutation(distinct)[: len(distinct) // 2])
        found.append(realism(real_ND[is_in_half], real_ND[~is_in_half]))
    return Realism(
        distance=float(np.mean([each.distance for each in found])),
        kid=float(np.mean([each.kid for each in found])),
        statistics={name: float(np.mean([each.statistics[name] for each in found])) for name in STATISTICS},
    )


def kid(features_ND: NDArray[np.float64], real_MD: NDArray[np.float64]) -> float:
    """Return the squared maximum mean discrepancy, estimated without bias, with the kernel (x . y / D + 1)^3.

    Named kernel inception distance where the features are an Inception network's; these are given, and there must be
    two or more on both sides. Source: Binkowski et al. 2018 (arXiv:1801.01401), section 3.1 and eq. 4.
    """
    from sklearn.metrics.pairwise import polynomial_kernel

    num, num_real = len(features_ND), len(real_MD)
    within = polynomial_kernel(features_ND, degree=3)
    within_real = polynomial_kernel(real_MD, degree=3)
    between = polynomial_kernel(features_ND, real_MD, degree=3)
    return float(
        (within.sum() - np.trace(within)) / (num * (num - 1))
        + (within_real.sum() - np.trace(within_real)) / (num_real * (num_real - 1))
        - 2 * between.mean()
    )
