"""Images to tell labels apart in, and classifiers of several seeds trained on them."""

# N images, M others, S seeds, K classes, H W height and width in pixels

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.manifest import ManifestRow
from evaluation.auc import mean_auc
from evaluation.classifier import ClassifierConfig, train_classifier
from evaluation.downstream.paired import Measure
from evaluation.downstream.source import Source
from evaluation.generated_images import GeneratedImages
from evaluation.real_images import RealImages


@dataclass(frozen=True)
class LabelledImages:
    """images_NHW: uint8, grey. clusters: of the patients; of generated images their files, as they have none."""

    images_NHW: NDArray[np.uint8]
    labels: tuple[str, ...]
    clusters: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.images_NHW) == len(self.labels) == len(self.clusters)

    @classmethod
    def of_real(cls, real: RealImages) -> Self:
        """Return real images."""
        return cls(real.images_NHW, real.labels, real.clusters)

    @classmethod
    def of_generated(cls, generated: GeneratedImages) -> Self:
        """Return generated images with the labels that were asked for."""
        return cls(generated.images_NHW, generated.labels, generated.files)

    def __len__(self) -> int:
        return len(self.labels)

    def __add__(self, other: Self) -> Self:
        return type(self)(
            np.concatenate([self.images_NHW, other.images_NHW]),
            self.labels + other.labels,
            self.clusters + other.clusters,
        )

    def of_labels(self, labels: Sequence[str]) -> Self:
        """Return those of some labels."""
        places = [place for place, label in enumerate(self.labels) if label in labels]
        return type(self)(
            self.images_NHW[places],
            tuple(self.labels[place] for place in places),
            tuple(self.clusters[place] for place in places),
        )


def images_of(
    source: Source, training: Sequence[ManifestRow], test: Sequence[ManifestRow], database: str
) -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    """Return the training images, those that the source draws of their prompts or has, and the test images."""
    generated = source.labelled(training, database)
    real, held_out = (RealImages.read(rows, source.config.encode, source.resolution) for rows in (training, test))
    return LabelledImages.of_real(real), LabelledImages.of_generated(generated), LabelledImages.of_real(held_out)


def auc_of(labels: Sequence[str], classes: Sequence[str]) -> Measure:
    """Return what measures the AUC of networks by their answers' ranks, for images of these labels; see `mean_auc`."""
    numbers_N = np.array([list(classes).index(label) for label in labels])
    return lambda ranks_SNK, places: mean_auc(ranks_SNK[:, places], numbers_N[places])


def classified(
    training: LabelledImages, images_MHW: NDArray[np.uint8], classifier: ClassifierConfig, num_seeds: int
) -> NDArray[np.float64]:
    """Return what classifiers of seeds `classifier.seed` on, trained alike, say of images: probabilities [S, M, K].

    Classes are the labels of the training images, sorted.
    """
    seeds = range(classifier.seed, classifier.seed + num_seeds)
    networks = (
        train_classifier(training.images_NHW, training.labels, classifier.model_copy(update={"seed": seed}))
        for seed in seeds
    )
    return np.stack([network.probabilities(images_MHW) for network in networks])


def refuse_shared_patients(training: Sequence[str], test: Sequence[str], database: str) -> None:
    """Raise DataError if a cluster has images on both sides: a test of those would be of memory."""
    if both := set(training) & set(test):
        raise DataError(
            f"{database} has patient {sorted(both)[0]} both in the training and in the test split: remove the manifest,"
            " run `sonoshard prepare`, and train again"
        )


def refuse_test_images(
    generated_NHW: NDArray[np.uint8], files: Sequence[str], test_MHW: NDArray[np.uint8], database: str
) -> None:
    """Raise DataError if a generated image is, pixel by pixel, one that networks are tested on."""
    tested = {image_HW.tobytes() for image_HW in test_MHW}
    for image_HW, file in zip(generated_NHW, files, strict=True):
        if image_HW.tobytes() in tested:
            raise DataError(
                f"{file} is a real image of the test split of {database}, needed generated ones: leave it out, and look"
                " at where the others come from"
            )
