"""Labels are judged each alike, so that who always says the most frequent one is at chance."""

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.classifier import Classifier
from evaluation.label_agreement import LabelAgreement, LabelScore, label_score
from evaluation.verdicts import of_labels

LABELS = ["benign"] * 54 + ["malignant"] * 6
CLUSTERS = [str(number) for number in range(60)]


class Planted(Classifier):
    """Says what is written in the first pixel of an image: 0 benign, 1 malignant."""

    def __init__(self) -> None:
        self.classes = ("breast/benign", "breast/malignant", "heart/normal")

    def probabilities(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float64]:
        found = np.full((len(images_NHW), 3), 0.05)
        found[np.arange(len(images_NHW)), images_NHW[:, 0, 0]] = 0.9
        return found


def score_of(says: list[int]) -> LabelScore:
    images = np.array(says, np.uint8)[:, None, None]
    return label_score(Planted(), "breast", images, LABELS, CLUSTERS, 0)


ALWAYS, RIGHT = score_of([0] * 60), score_of([0] * 54 + [1] * 6)


def test_balanced_accuracy_is_sklearns() -> None:
    from sklearn.metrics import balanced_accuracy_score

    says = np.random.default_rng(0).integers(0, 2, 60).tolist()
    numbers = [int(label == "malignant") for label in LABELS]
    assert score_of(says).balanced_accuracy.value == pytest.approx(balanced_accuracy_score(numbers, says))


def agreement(generated: LabelScore, real: LabelScore) -> LabelAgreement:
    return LabelAgreement(labels=("benign", "malignant"), chance=0.5, generated=generated, real=real)


def test_always_the_majority_is_chance_though_nine_of_ten_are_right() -> None:
    assert ALWAYS.balanced_accuracy.value == 0.5
    assert ALWAYS.auc.value == 0.5
    assert RIGHT.balanced_accuracy.value == RIGHT.auc.value == 1


@pytest.mark.parametrize(
    ("generated", "real", "level"), [(ALWAYS, ALWAYS, "unknown"), (ALWAYS, RIGHT, "bad"), (RIGHT, RIGHT, "good")]
)
def test_neither_a_classifier_nor_images_of_the_majority_alone_are_good(
    generated: LabelScore, real: LabelScore, level: str
) -> None:
    assert of_labels(agreement(generated, real)).level == level
