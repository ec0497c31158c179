"""How far generated images are from held-out real ones in features, beside how far real ones are from one another.

FID is written here, in a few lines, since torch-fidelity needs torchvision, and has no distance of two sets of features
that are there: it is asked for hundreds of halvings of them.
"""

# N images, M other images, D features

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.linalg import qr, svdvals

from evaluation.realism import MIN_CLUSTERS, kid

# Of halvings, those between the bounds of a `Spread`.
SPREAD_SHARE = 0.95
NUM_HALVINGS = 100
# Of features as wide as Inception's a Frechet distance takes seconds.
NUM_WIDE_HALVINGS, WIDE = 10, 512

# Named distances of two sets, [N, D] and [M, D].
Distances = Callable[[NDArray[np.float64], NDArray[np.float64]], Mapping[str, float]]


class Spread(BaseModel):
    """A mean over halvings of the held-out patients, and the bounds that 95 % of the halvings are within.

    Halvings overlap: this is what a choice of patients does to a distance, not a confidence interval of the mean.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


class Compared(BaseModel):
    """A distance of generated images to real ones, and of other real ones to the same: what a perfect generator has.

    share_above: of the halvings, those in which the generated images are farther than the real ones from the same half;
    0.5 is as real. num_patients: that were halved. num_generated: images; None where an older report does not say.
    """

    model_config = ConfigDict(frozen=True)

    generated: Spread
    real: Spread
    share_above: float
    num_patients: int
    num_generated: int | None = None


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


def feature_distances(features_ND: NDArray[np.float64], others_MD: NDArray[np.float64]) -> dict[str, float]:
    """Return the Frechet distance and KID of two sets of features."""
    return {"fid": frechet_distance(features_ND, others_MD), "kid": kid(features_ND, others_MD)}


def compare(
    generated_ND: NDArray[np.float64],
    real_MD: NDArray[np.float64],
    clusters: Sequence[str],
    distances: Distances,
    seed: int,
) -> dict[str, Compared]:
    """Return distances of generated images to real ones of held-out patients, and of those to one another.

    Held-out patients are halved at random many times, clusters whole: each time both the other half and as many
    generated images, drawn anew, are compared with the one half. So both distances are of sets of the same sizes, and
    the spreads hold what the choice of patients and images does. Halving, not drawing with replacement: doubles move
    FID and KID both. Source: subsampling, Politis, Romano & Wolf 1999 (doi:10.1007/978-1-4612-1554-7), section 2.2.
    There must be `MIN_CLUSTERS` clusters and two generated images.
    """
    names = np.asarray(clusters)
    distinct = np.unique(names)
    assert len(distinct) >= MIN_CLUSTERS
    assert len(generated_ND) >= 2
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(NUM_HALVINGS if real_MD.shape[1] < WIDE else NUM_WIDE_HALVINGS):
        is_in_half = np.isin(names, rng.permutation(distinct)[: len(distinct) // 2])
        half, other = real_MD[is_in_half], real_MD[~is_in_half]
        num = min(len(other), len(generated_ND))
        drawn = generated_ND[rng.permutation(len(generated_ND))[:num]]
        stand_in = other[rng.permutation(len(other))[:num]]
        of_generated, of_real = distances(drawn, half), distances(stand_in, half)
        for name, distance in of_generated.items():
            found.setdefault(name, []).append((distance, of_real[name]))
    return {name: _compared(np.array(pairs), len(distinct), len(generated_ND)) for name, pairs in found.items()}


def _compared(pairs: NDArray[np.float64], num_patients: int, num_generated: int) -> Compared:
    generated, real = (_spread(column) for column in pairs.T)
    share_above = float((pairs[:, 0] > pairs[:, 1]).mean())
    return Compared(
        generated=generated,
        real=real,
        share_above=share_above,
        num_patients=num_patients,
        num_generated=num_generated,
    )


def _spread(values: NDArray[np.float64]) -> Spread:
    low, high = np.quantile(values, [(1 - SPREAD_SHARE) / 2, (1 + SPREAD_SHARE) / 2])
    return Spread(value=float(values.mean()), low=float(low), high=float(high))
