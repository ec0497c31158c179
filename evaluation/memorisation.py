"""Whether generated images are copies of training images: their nearest ones, against those of held-out real images."""

# N generated images, M held-out real ones, T training images, H W height and width

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import beta, betabinom

from evaluation.features import Features
from evaluation.generated_images import ALL
from evaluation.intervals import CONFIDENCE, share
from evaluation.nearest import Nearest, nearest, thumbnails
from evaluation.real_images import RealImages

# Of held-out patients, those with an image as near to a training image as a suspect.
SUSPECT_SHARE = 0.01
# An image is a copy, whatever the others are, if it is nearer than so many times the nearest held-out one. On simulated
# images: copies with noise, blur or another grey curve 0.0 to 0.3 in pixels, 320 images of new patients 0.8 and more.
COPY_TIMES = 0.5
PIXELS, FEATURES = "pixels", "features"


class Calibration(BaseModel):
    """What is near in a database, by its held-out patients. Of each the least ratio counts; see `Nearest`.

    threshold: the k-th least of P patients. least: the first. expected: k / (P + 1), the share of images of new
    patients below the threshold, or less; expected_high: what it is at most, with 95 % confidence, as patients are few.
    """

    model_config = ConfigDict(frozen=True)

    num_patients: int
    threshold: float
    least: float
    expected: float
    expected_high: float


class Suspects(BaseModel):
    """Generated images that are nearer to a training image than the threshold of their database, in one space.

    share: of generated images, with its 95 % Wilson interval. num_copies: those that are copies by themselves, see
    `COPY_TIMES`. expected, expected_high: of the images as they are spread over databases; see `Calibration`.
    smallest_found: the smallest share that would be flagged; None: not even all of them would be. by_chance: how likely
    as many suspects or more are of new patients, at most.
    """

    model_config = ConfigDict(frozen=True)

    databases: dict[str, Calibration]
    num_suspects: int
    num_copies: int
    num_generated: int
    share: float
    low: float
    high: float
    expected: float
    expected_high: float
    smallest_found: float | None
    by_chance: float

    @property
    def is_flagged(self) -> bool:
        """Whether there are more suspects than chance explains."""
        return self.low > self.expected_high


@dataclass(frozen=True)
class Memorisation:
    """What was found in each space. nearest: of the generated images; held_out: of the real ones.

    databases: of each generated image.
    """

    suspects: dict[str, Suspects]
    nearest: dict[str, Nearest]
    held_out: dict[str, Nearest]
    databases: tuple[str, ...]

    @property
    def is_flagged(self) -> bool:
        """Whether there are more suspects than chance explains, in either space."""
        return any(found.is_flagged for found in self.suspects.values())

    @property
    def num_copies(self) -> int:
        """Images that are copies by themselves, in either space."""
        of_spaces = [_are_copies(self._of(space), found.ratios) for space, found in self.nearest.items()]
        return int(np.any(of_spaces, axis=0).sum())

    @property
    def num_suspects(self) -> int:
        """Images that are suspects in either space."""
        return int((self.suspicion() < 1).sum())

    def suspicion(self) -> NDArray[np.float64]:
        """Return, of each generated image, its ratio over the threshold in the space where that is less; 1: suspect."""
        least: NDArray[np.float64] = np.min(list(self._relative().values()), axis=0)
        return least

    def worst(self, num: int) -> list[tuple[int, str]]:
        """Return places of the generated images that are nearest to training images, and the space that says so."""
        relative = self._relative()
        order = np.argsort(self.suspicion(), kind="stable")[:num]
        return [(int(place), min(relative, key=lambda space: float(relative[space][place]))) for place in order]

    def to_json(self) -> dict[str, Any]:
        """Return the figures in JSON's types."""
        return {space: {**found.model_dump(), "is_flagged": found.is_flagged} for space, found in self.suspects.items()}

    def _of(self, space: str) -> list[Calibration]:
        return [self.suspects[space].databases[name] for name in self.databases]

    def _relative(self) -> dict[str, NDArray[np.float64]]:
        return {space: found.ratios / _thresholds(self._of(space)) for space, found in self.nearest.items()}


def _thresholds(calibrations_N: Sequence[Calibration]) -> NDArray[np.float64]:
    return np.array([max(of.threshold, 1e-12) for of in calibrations_N])


def _are_copies(calibrations_N: Sequence[Calibration], ratios_N: NDArray[np.float64]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = ratios_N < COPY_TIMES * np.array([of.least for of in calibrations_N])
    return found


def memorisation(
    generated_NHW: NDArray[np.uint8],
    databases: Sequence[str],
    held_out: RealImages,
    training: RealImages,
    features: Features,
) -> Memorisation:
    """Return the nearest training images of generated and of held-out real images, in pixels and in features.

    All are grey, uint8, of one size. databases: of the generated images, `ALL` or one of which images are held out.
    Training images are of two patients or more. Pixels see copies with noise, blur, other gain or grey curve, turned
    left to right; features may see others, such as moved ones, where their network was taught to look past that. The
    built-in classifier's saw none on simulated images that pixels did not.
    """
    spaces = {PIXELS: thumbnails, FEATURES: features.of}
    nearest_of: dict[str, Nearest] = {}
    held_out_of: dict[str, Nearest] = {}
    for space, of in spaces.items():
        of_training = of(training.images_NHW)
        for into, images in ((nearest_of, generated_NHW), (held_out_of, held_out.images_NHW)):
            mirrored = of(np.ascontiguousarray(images[:, :, ::-1]))
            into[space] = nearest(of(images), mirrored, of_training, training.clusters)
    clusters, groups = np.asarray(held_out.clusters), np.array([row.database for row in held_out.rows])
    suspects = {}
    for space in spaces:
        calibrations = {}
        for name in dict.fromkeys(databases):
            own = np.isin(groups, [name]) | (name == ALL)
            calibrations[name] = calibrated(held_out_of[space].ratios[own], clusters[own].tolist())
        suspects[space] = suspects_among(nearest_of[space].ratios, databases, calibrations)
    return Memorisation(suspects, nearest_of, held_out_of, tuple(databases))


def calibrated(held_out_M: NDArray[np.float64], clusters: Sequence[str]) -> Calibration:
    """Return what is near, where k is about a hundredth of the patients, or 1.

    An image of a new patient falls below the threshold with probability k / (P + 1) at most, whatever the distribution,
    since the least of the patient's images does so with just that; given the threshold that was found, the share is
    Beta(k, P + 1 - k). Images of one patient are alike, so that they count once. Sources: Vovk et al. 2005
    (doi:10.1007/b106715), section 2.2 (conformal p-values); David & Nagaraja 2003 (doi:10.1002/0471722162), section 2.1
    (order statistics).
    """
    names, of_image = np.unique(np.asarray(clusters), return_inverse=True)
    least_P = np.full(len(names), np.inf)
    np.minimum.at(least_P, of_image, held_out_M)
    least_P.sort()
    num = len(names)
    k = max(1, int(SUSPECT_SHARE * (num + 1)))
    return Calibration(
        num_patients=num,
        threshold=float(least_P[k - 1]),
        least=float(least_P[0]),
        expected=k / (num + 1),
        expected_high=float(beta(k, num + 1 - k).ppf((1 + CONFIDENCE) / 2)),
    )


def suspects_among(
    ratios_N: NDArray[np.float64], databases: Sequence[str], calibrations: Mapping[str, Calibration]
) -> Suspects:
    """Return how many images are suspects, each by the calibration of its database.

    Of N new images the number below the k-th of P patients is beta-binomial, (N, k, P + 1 - k); over several databases
    the least likely of them counts, times their number (Bonferroni).
    """
    own = [calibrations[name] for name in databases]
    is_suspect_N = ratios_N < _thresholds(own)
    num, total = int(is_suspect_N.sum()), len(ratios_N)
    found = share(num, total)
    expected_high = float(np.mean([of.expected_high for of in own]))
    # The bound rises with the count.
    flagged = bisect_left(range(total + 1), True, key=lambda count: share(count, total).low > expected_high)
    return Suspects(
        databases=dict(calibrations),
        num_suspects=num,
        num_copies=int(_are_copies(own, ratios_N).sum()),
        num_generated=total,
        share=found.value,
        low=found.low,
        high=found.high,
        expected=float(np.mean([of.expected for of in own])),
        expected_high=expected_high,
        smallest_found=flagged / total if flagged <= total else None,
        by_chance=min(
            1.0,
            len({id(of) for of in own})
            * min(_by_chance(of, is_suspect_N[[each is of for each in own]]) for of in calibrations.values()),
        ),
    )


def _by_chance(of: Calibration, is_suspect_N: NDArray[np.bool_]) -> float:
    if not len(is_suspect_N):
        return 1.0
    k = round(of.expected * (of.num_patients + 1))
    return float(betabinom(len(is_suspect_N), k, of.num_patients + 1 - k).sf(int(is_suspect_N.sum()) - 1))
