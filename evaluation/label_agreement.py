"""Whether generated images show the label that was asked for, by a classifier trained on real images."""

# N images, K classes

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evaluation.auc import mean_auc
from evaluation.classifier import Classifier
from evaluation.intervals import Interval, bootstrap

# Of a class name "database/label".
SEPARATOR = "/"


class LabelScore(BaseModel):
    """How a classifier's answers agree with labels, with 95 % bootstrap intervals by patient.

    balanced_accuracy: the mean over labels of the share that was told right, so that who always says the most frequent
    label is at chance. auc: the mean over labels of each against the others, 0.5 is chance.
    """

    model_config = ConfigDict(frozen=True)

    num_images: int
    balanced_accuracy: Interval
    auc: Interval


class LabelAgreement(BaseModel):
    """Of generated images by the labels asked for, and of held-out real ones with one of these by their own.

    labels: two or more. chance: the balanced accuracy of guesses, and of one answer for all.
    """

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
    is_right_N = found_NK.argmax(1) == numbers_N

    def balanced_accuracy(drawn: NDArray[np.intp]) -> float:
        # sklearn's balanced_accuracy_score, which takes a hundred times as long: a minute for all resamples.
        right, there = (np.bincount(numbers_N[drawn], weights) for weights in (is_right_N[drawn], None))
        return float((right[there > 0] / there[there > 0]).mean())

    def auc(drawn: NDArray[np.intp]) -> float:
        return auc_or_chance(found_NK[drawn], numbers_N[drawn])

    return LabelScore(
        num_images=len(numbers_N),
        balanced_accuracy=bootstrap(balanced_accuracy, [clusters], seed),
        auc=bootstrap(auc, [clusters], seed),
    )


def auc_or_chance(found_NK: NDArray[np.float64], numbers_N: NDArray[np.int64]) -> float:
    """Return the mean AUC of one network's probabilities; that of chance, 0.5, where a resample has one label alone."""
    value = float(mean_auc(found_NK[None], numbers_N)[0])
    return 0.5 if math.isnan(value) else value
