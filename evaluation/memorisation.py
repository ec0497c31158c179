"""Whether generated images are copies of training images: their nearest ones, against those of held-out real images."""

# N generated images, M held-out real ones, T training images, H W height and width

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import beta, binomtest

from evaluation.features import Features
from evaluation.nearest import Nearest, nearest, thumbnails

# Of held-out real images, those that are as near to a training image as a suspect.
SUSPECT_SHARE = 0.01
CONFIDENCE = 0.95
PIXELS, FEATURES = "pixels", "features"


class Suspects(BaseModel):
    """Generated images that are nearer to a training image than `threshold`, in one space.

    threshold: the ratio of the k-th nearest of M held-out real images; see `Nearest`. share: of generated images, with
    its 95 % Wilson interval. expected: k / (M + 1), the share of real images of new patients; expected_high: what it is
    at most, with the same confidence, as held-out images are few. is_flagged: whether there are more than that.
    """

    model_config = ConfigDict(frozen=True)

    threshold: float
    num_suspects: int
    num_generated: int
    num_held_out: int
    share: float
    low: float
    high: float
    expected: float
    expected_high: float

    @property
    def is_flagged(self) -> bool:
        """Whether there are more suspects than chance explains."""
        return self.low > self.expected_high


@dataclass(frozen=True)
class Memorisation:
    """What was found in each space. nearest: of the generated images; held_out: of the real ones."""

    suspects: dict[str, Suspects]
    nearest: dict[str, Nearest]
    held_out: dict[str, Nearest]

    @property
    def is_flagged(self) -> bool:
        """Whether there are more suspects than chance explains, in either space."""
        return any(found.is_flagged for found in self.suspects.values())

    def suspicion(self) -> NDArray[np.float64]:
        """Return, of each generated image, its ratio over the threshold in the space where that is less; 1: suspect."""
        relative = [found.ratios / max(self.suspects[space].threshold, 1e-12) for space, found in self.nearest.items()]
        least: NDArray[np.float64] = np.min(relative, axis=0)
        return least

    def worst(self, num: int) -> list[tuple[int, str]]:
        """Return places of the generated images that are nearest to training images, and the space that says so."""
        relative = {
            space: found.ratios / max(self.suspects[space].threshold, 1e-12) for space, found in self.nearest.items()
        }
        order = np.argsort(self.suspicion(), kind="stable")[:num]
        return [(int(place), min(relative, key=lambda space: float(relative[space][place]))) for place in order]

    def to_json(self) -> dict[str, Any]:
        """Return the figures in JSON's types."""
        return {space: {**found.model_dump(), "is_flagged": found.is_flagged} for space, found in self.suspects.items()}


def memorisation(
    generated_NHW: NDArray[np.uint8],
    held_out_MHW: NDArray[np.uint8],
    training_THW: NDArray[np.uint8],
    training_clusters: Sequence[str],
    features: Features,
) -> Memorisation:
    """Return the nearest training images of generated and of held-out real images, in pixels and in features.

    All are grey, uint8, of one size. training_clusters: of two patients or more.
    """
    spaces = {PIXELS: thumbnails, FEATURES: features.of}
    found: dict[str, Nearest] = {}
    held_out: dict[str, Nearest] = {}
    for space, of in spaces.items():
        training = of(training_THW)
        for into, images in ((found, generated_NHW), (held_out, held_out_MHW)):
            mirrored = of(np.ascontiguousarray(images[:, :, ::-1]))
            into[space] = nearest(of(images), mirrored, training, training_clusters)
    suspects = {space: suspects_among(found[space].ratios, held_out[space].ratios) for space in spaces}
    return Memorisation(suspects, found, held_out)


def suspects_among(ratios_N: NDArray[np.float64], held_out_M: NDArray[np.float64]) -> Suspects:
    """Return how many ratios are below the k-th least of held-out ones, where k is about a hundredth of them, or 1.

    A new real image falls below it with probability k / (M + 1), whatever the distribution; given the threshold that
    was found, the share is Beta(k, M + 1 - k). Sources: Vovk et al. 2005 (doi:10.1007/b106715), section 2.2 (conformal
    p-values); David & Nagaraja 2003 (doi:10.1002/0471722162), section 2.1 (order statistics); Wilson 1927
    (doi:10.1080/01621459.1927.10502953).
    """
    num_held_out = len(held_out_M)
    k = max(1, int(SUSPECT_SHARE * (num_held_out + 1)))
    threshold = float(np.sort(held_out_M)[k - 1])
    num = int((ratios_N < threshold).sum())
    interval = binomtest(num, len(ratios_N)).proportion_ci(CONFIDENCE, method="wilson")
    return Suspects(
        threshold=threshold,
        num_suspects=num,
        num_generated=len(ratios_N),
        num_held_out=num_held_out,
        share=num / len(ratios_N),
        low=float(interval.low),
        high=float(interval.high),
        expected=k / (num_held_out + 1),
        expected_high=float(beta(k, num_held_out + 1 - k).ppf((1 + CONFIDENCE) / 2)),
    )
