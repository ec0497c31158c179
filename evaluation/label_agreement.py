"""Whether generated images show the label that was asked for, by a classifier trained on real images."""

# N images, K classes

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evaluation.auc import mean_auc
from evaluation.classifier import Classifier
from evaluation.feature_distance import Interval
from evaluation.mask_agreement import bootstrap

# Of a class name "database/label".
SEPARATOR = "/"


class LabelScore(BaseModel):
    """How a classifier's answers agree with labels, with 95 % bootstrap intervals by patient.

    auc: the mean over labels of each against the others, 0.5 is chance; None where only one label is there.
    """

    model_config = ConfigDict(frozen=True)

    num_images: int
    accuracy: Interval
    auc: Interval | None


class LabelAgreement(BaseModel):
    """Of generated images by the labels asked for, and of held-out real ones by their own. chance: of accuracy."""

    model_config = ConfigDict(frozen=True)

    labels: tuple[str, ...]
    chance: float
    generated: LabelScore
    real: LabelScore


def class_name(database: str, label: str) -> str:
    """Return the class of a label of a database: "normal" of one is not that of another."""
    return f"{database}{SEPARATOR}{label}"


def labels_of(classifier: Classifier, database: str) -> list[str]:
    """Return the labels of a database that the classifier knows, in the order of its classes."""
    return [name.split(SEPARATOR, 1)[1] for name in classifier.classes if name.split(SEPARATOR, 1)[0] == database]


def label_score(
    classifier: Classifier,
    database: str,
    images_NHW: NDArray[np.uint8],
    labels: Sequence[str],
    clusters: Sequence[str],
    seed: int,
) -> LabelScore:
    """Return how the classifier's choice among a database's labels agrees with those given, each of which it knows."""
    known = labels_of(classifier, database)
    places = [classifier.classes.index(class_name(database, label)) for label in known]
    found_NK = classifier.probabilities(images_NHW)[:, places]
    found_NK = found_NK / found_NK.sum(1, keepdims=True)
    numbers_N = np.array([known.index(label) for label in labels])
    is_right_N = (found_NK.argmax(1) == numbers_N).astype(np.float64)
    accuracy = bootstrap(is_right_N, clusters, np.mean, seed)

    def auc(chosen: NDArray[np.float64]) -> float:
        rows = chosen.astype(int)
        return auc_or_chance(found_NK[rows], numbers_N[rows])

    of_auc = None
    if len(np.unique(numbers_N)) > 1:
        estimate = bootstrap(np.arange(len(numbers_N), dtype=np.float64), clusters, auc, seed)
        of_auc = Interval(value=estimate.value, low=estimate.low, high=estimate.high)
    return LabelScore(
        num_images=len(numbers_N),
        accuracy=Interval(value=accuracy.value, low=accuracy.low, high=accuracy.high),
        auc=of_auc,
    )


def auc_or_chance(found_NK: NDArray[np.float64], numbers_N: NDArray[np.int64]) -> float:
    """Return the mean AUC of one network's probabilities; that of chance, 0.5, where a resample has one label alone."""
    value = float(mean_auc(found_NK[None], numbers_N)[0])
    return 0.5 if math.isnan(value) else value
