"""How far generated images are from held-out real ones in features, beside how far real ones are from one another.

FID is written here, in a few lines, since torch-fidelity needs torchvision, and takes no features but its own.
"""

# N images, M other images, D features

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.linalg import qr, svdvals

from evaluation.realism import MIN_CLUSTERS, kid

CONFIDENCE = 0.95
NUM_HALVINGS = 100
# Of features as wide as Inception's a Frechet distance takes seconds.
NUM_WIDE_HALVINGS, WIDE = 10, 512

Distance = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


class Interval(BaseModel):
    """A mean over halvings of the held-out patients, and the bounds that 95 % of them are within."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


class Compared(BaseModel):
    """A distance of generated images to real ones, and of other real ones to the same: what a perfect generator has.

    share_above: of the halvings, those in which the generated images are farther than the real ones; 0.5 is as real.
    """

    model_config = ConfigDict(frozen=True)

    generated: Interval
    real: Interval
    share_above: float


def frechet_distance(features_ND: NDArray[np.float64], others_MD: NDArray[np.float64]) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of means and covariances of two sets; FID of Inception's.

    Two or more images on both sides. It is above 0 for sets of one distribution, the more the fewer they are. The last
    trace is the sum of the singular values of A B', where A' A = C1 and B' B = C2: exact where covariances have no full
    rank, and quick for few images. Source: Dowson & Landau 1982 (doi:10.1016/0047-259X(82)90077-X); Heusel et al. 2017
    (arXiv:1706.08500), eq. 6; singular values, Mathiasen & Hvilshoj 2020 (arXiv:2009.14075), section 3.
    """
    (mean_1, one), (mean_2, other) = (_centred(of) for of in (features_ND, others_MD))
    num_features = one.shape[1]
    # Whichever is smaller: [N, M], or [D, D] of roots that have no more rows than that.
    roots = [qr(of, mode="r")[0][:num_features] if len(of) > num_features else of for of in (one, other)]
    overlap = float(svdvals(roots[0] @ roots[1].T).sum())
    distance = ((mean_1 - mean_2) ** 2).sum() + (one**2).sum() + (other**2).sum() - 2 * overlap
    return max(0.0, float(distance))


def _centred(features_ND: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean_D = features_ND.mean(0)
    return mean_D, (features_ND - mean_D) / np.sqrt(len(features_ND) - 1)


FEATURE_DISTANCES: dict[str, Distance] = {"fid": frechet_distance, "kid": kid}


def compare(
    generated_ND: NDArray[np.float64],
    real_MD: NDArray[np.float64],
    clusters: Sequence[str],
    distances: Mapping[str, Distance],
    seed: int,
) -> dict[str, Compared]:
    """Return distances of generated images to real ones of held-out patients, and of those to one another.

    Held-out patients are halved at random many times, clusters whole: each time both the other half and as many
    generated images, drawn anew, are compared with the one half. So both distances are of sets of the same sizes, and
    the intervals hold what the choice of patients and images does. Halving, not drawing with replacement: doubles move
    FID and KID both. Source: subsampling, Politis, Romano & Wolf 1999 (doi:10.1007/978-1-4612-1554-7), section 2.2.
    There must be `MIN_CLUSTERS` clusters and two generated images.
    """
    names = np.asarray(clusters)
    distinct = np.unique(names)
    assert len(distinct) >= MIN_CLUSTERS
    assert len(generated_ND) >= 2
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in distances}
    for _ in range(NUM_HALVINGS if real_MD.shape[1] < WIDE else NUM_WIDE_HALVINGS):
        is_in_half = np.isin(names, rng.permutation(distinct)[: len(distinct) // 2])
        half, other = real_MD[is_in_half], real_MD[~is_in_half]
        num = min(len(other), len(generated_ND))
        drawn = generated_ND[rng.permutation(len(generated_ND))[:num]]
        stand_in = other[rng.permutation(len(other))[:num]]
        for name, distance in distances.items():
            found[name].append((distance(drawn, half), distance(stand_in, half)))
    return {name: _compared(np.array(pairs)) for name, pairs in found.items()}


def _compared(pairs: NDArray[np.float64]) -> Compared:
    generated, real = (_range(column) for column in pairs.T)
    return Compared(generated=generated, real=real, share_above=float((pairs[:, 0] > pairs[:, 1]).mean()))


def _range(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value=float(values.mean()), low=float(low), high=float(high))
