"""Whether generated images follow the masks they were drawn from, by a segmenter trained on real images."""

# N images, H W height and width in pixels

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from evaluation.intervals import CONFIDENCE, NUM_RESAMPLES, Interval, bootstrap
from evaluation.masked_images import MaskedImages
from evaluation.segmenter import Segmenter


def dice(predicted_HW: NDArray[np.uint8], wanted_HW: NDArray[np.uint8], number: int) -> float:
    """Return the Dice coefficient of the pixels with a class number, in [0, 1]: 1 is the same, 0 is nothing shared.

    It is NaN, not 1, where neither mask has the class: there is nothing to agree on. Source: Dice 1945
    (doi:10.2307/1932409).
    """
    predicted, wanted = predicted_HW == number, wanted_HW == number
    total = int(predicted.sum()) + int(wanted.sum())
    return 2 * int((predicted & wanted).sum()) / total if total else math.nan


def hausdorff_95(predicted_HW: NDArray[np.uint8], wanted_HW: NDArray[np.uint8], number: int) -> float:
    """Return the distance that 95 % of either outline are within of the other, the larger of both, in pixels.

    NaN where neither mask has the class, infinite where one of them has not. An outline is the class's pixels with a
    neighbour, out of four, that is not of it; so is what lies beyond the picture.
    Source: Maier-Hein et al. 2024 (arXiv:2206.01653), "Hausdorff Distance 95th Percentile".
    """
    predicted, wanted = predicted_HW == number, wanted_HW == number
    if not predicted.any() or not wanted.any():
        return math.inf if predicted.any() or wanted.any() else math.nan
    one, other = (mask & ~binary_erosion(mask) for mask in (predicted, wanted))
    from_one, from_other = (distance_transform_edt(~outline) for outline in (one, other))
    return float(max(np.percentile(from_other[one], 95), np.percentile(from_one[other], 95)))


@dataclass(frozen=True)
class Score:
    """How well the segmenter finds a class in images.

    dice: mean over the num_images whose mask has the class; it is 0 in the num_missed of them where none was found.
    hausdorff_95_px: median over the same, infinite where missed. num_without: images whose mask lacks the class, in
    num_invented of which the segmenter found one; Dice is not of these.
    """

    dice: Interval
    hausdorff_95_px: Interval
    num_images: int
    num_missed: int
    num_without: int
    num_invented: int


@dataclass(frozen=True)
class ClassAgreement:
    """A class in real images, against their own masks, and in generated ones, against the masks they were drawn from.

    unrelated_dice: mean Dice of generated images against the mask of another one: what a generator reaches that draws
    the organ and does not look at the mask. gain: what Dice has over that, image by image. reconstructed: real images
    after the VAE, against their own masks: what a generator reaches that makes no mistake; None if they were not given.
    """

    real: Score
    generated: Score
    unrelated_dice: Interval
    gain: Interval
    reconstructed: Score | None = None


@dataclass(frozen=True)
class MaskAgreement:
    """What was found, by class name. unseen: classes that masks have and no image the segmenter was trained on."""

    classes: Mapping[str, ClassAgreement]
    unseen: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it in JSON's types; a number that is not finite becomes None."""
        found: dict[str, Any] = _finite({name: asdict(agreement) for name, agreement in self.classes.items()})
        return {"confidence": CONFIDENCE, "resamples": NUM_RESAMPLES, "classes": found, "unseen": list(self.unseen)}


def mask_agreement(
    segmenter: Segmenter,
    real: MaskedImages,
    generated: MaskedImages,
    *,
    reconstructed: MaskedImages | None = None,
    seed: int = 0,
) -> MaskAgreement:
    """Return how well the segmenter's masks agree with those wanted, for each class that the wanted masks have.

    real: held out, with their own masks. generated: with the masks that they were drawn from. reconstructed: real after
    the VAE. seed: of the bootstrap. Classes that the segmenter was never shown are named, and not looked for.
    """
    numbers = sorted(set(np.unique(real.class_numbers_NHW)) | set(np.unique(generated.class_numbers_NHW)))
    unseen = [int(number) for number in numbers if number not in segmenter.numbers]
    sources = {"real": real, "generated": generated}
    if reconstructed is not None:
        sources["reconstructed"] = reconstructed
    predicted = {source: segmenter.predict(images.images_NHW) for source, images in sources.items()}
    found = {}
    for number in map(int, numbers):
        if number == 0 or number in unseen:
            continue
        unrelated, gain = beside_unrelated(predicted["generated"], generated, number, seed)
        found[segmenter.classes[number]] = ClassAgreement(
            **{source: score(predicted[source], images, number, seed) for source, images in sources.items()},
            unrelated_dice=unrelated,
            gain=gain,
        )
    return MaskAgreement(found, tuple(segmenter.classes[number] for number in unseen))


def score(predicted_NHW: NDArray[np.uint8], wanted: MaskedImages, number: int, seed: int) -> Score:
    """Return how well predicted masks agree with the wanted ones in a class."""
    has_class = (wanted.class_numbers_NHW == number).any(axis=(1, 2))
    is_found = (predicted_NHW == number).any(axis=(1, 2))
    places = np.flatnonzero(has_class)
    clusters = [wanted.clusters[place] for place in places]

    def each(measure: Callable[[NDArray[np.uint8], NDArray[np.uint8], int], float]) -> NDArray[np.float64]:
        return np.array([measure(predicted_NHW[i], wanted.class_numbers_NHW[i], number) for i in places])

    return Score(
        dice=_over(each(dice), clusters, np.mean, seed),
        hausdorff_95_px=_over(each(hausdorff_95), clusters, _median, seed),
        num_images=len(places),
        num_missed=int((has_class & ~is_found).sum()),
        num_without=int((~has_class).sum()),
        num_invented=int((~has_class & is_found).sum()),
    )


def beside_unrelated(
    predicted_NHW: NDArray[np.uint8], wanted: MaskedImages, number: int, seed: int
) -> tuple[Interval, Interval]:
    """Return the mean Dice of each image against another's mask that has the class, and what its own has above that.

    The other is half of the images away, in the order of their clusters; where it is of the same one (of a patient, or
    of images of one mask), the image is left out. NaN if there is but one cluster.
    """
    has_class = (wanted.class_numbers_NHW == number).any(axis=(1, 2))
    places = sorted(np.flatnonzero(has_class), key=lambda place: wanted.clusters[place])
    others = np.roll(places, len(places) // 2).tolist()
    pairs = [
        (place, other)
        for place, other in zip(places, others, strict=True)
        if wanted.clusters[place] != wanted.clusters[other]
    ]
    clusters = [wanted.clusters[place] for place, _ in pairs]
    own_N, unrelated_N = (
        np.array([dice(predicted_NHW[pair[0]], wanted.class_numbers_NHW[pair[of]], number) for pair in pairs])
        for of in (0, 1)
    )
    return _over(unrelated_N, clusters, np.mean, seed), _over(own_N - unrelated_N, clusters, np.mean, seed)


def _over(
    values_N: NDArray[np.float64],
    clusters: Sequence[str],
    statistic: Callable[[NDArray[np.float64]], Any],
    seed: int,
) -> Interval:
    """Return a statistic of values, one per image, with its interval over patients."""
    return bootstrap(lambda places: float(statistic(values_N[places])), [clusters], seed)


def _median(values: NDArray[np.float64]) -> float:
    """Return the median, the larger of the two in the middle: there is none between a finite and an infinite value."""
    return float(np.sort(values)[len(values) // 2])


def _finite(value: Any) -> Any:
    if isinstance(value, Interval):
        return _finite(value.model_dump())
    if isinstance(value, dict):
        return {name: _finite(of_name) for name, of_name in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
