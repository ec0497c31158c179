"""The classifier learns what there is to learn, and nothing where labels are of other images."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from data.errors import DataError
from evaluation.classifier import MAX_WIDTHS, Classifier, ClassifierConfig, train_classifier

SIZE = 64
# Not varied: a sixtieth of a minute is too short to see through the blur that would be added.
QUICK = ClassifierConfig(steps=60, batch_size=8, width=8, augment=False)


def planted(num: int, seed: int, size: int = SIZE) -> tuple[NDArray[np.uint8], list[str]]:
    """Speckle of the same mean everywhere; "lesion" has a dark disc somewhere, "texture" is smoother, "plain" neither.

    Brightness, gain and place differ from image to image, so that no single pixel gives a label away.
    """
    rng = np.random.default_rng(seed)
    labels = [("lesion", "plain", "texture")[number % 3] for number in range(num)]
    images = []
    rows, columns = np.indices((size, size))
    for label in labels:
        grain = rng.normal(0, 1, (size, size))
        if label == "texture":
            grain = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, 2, 0)) / 2
        image = rng.uniform(90, 150) + rng.uniform(20, 30) * grain
        if label == "lesion":
            at = rng.uniform(0.3, 0.7, 2) * size
            image[np.hypot(rows - at[0], columns - at[1]) < rng.uniform(0.12, 0.2) * size] -= 70
        images.append(image.clip(0, 255).astype(np.uint8))
    return np.stack(images), labels


def accuracy(classifier: Classifier, images: NDArray[np.uint8], labels: list[str]) -> float:
    found = classifier.probabilities(images).argmax(1)
    return float(np.mean([classifier.classes[number] == label for number, label in zip(found, labels, strict=True)]))


def test_planted_classes_are_learnt_and_shuffled_labels_are_not() -> None:
    images, labels = planted(96, 0)
    held_out = planted(60, 1)
    assert accuracy(train_classifier(images, labels, QUICK), *held_out) > 0.9
    shuffled = list(np.random.default_rng(2).permutation(labels))
    classifier = train_classifier(images, shuffled, QUICK)
    # Of 60 images of 3 classes, chance is 1/3 and its standard deviation 0.06. A network that says one thing of every
    # image has 1/3; AUC has no such floor.
    assert accuracy(classifier, *held_out) < 0.6
    auc = roc_auc_score(held_out[1], classifier.probabilities(held_out[0]), multi_class="ovr")
    assert 0.2 < auc < 0.8


def test_probabilities_and_features() -> None:
    images, labels = planted(24, 0)
    classifier = train_classifier(images, labels, QUICK.model_copy(update={"steps": 5}))
    assert classifier.classes == ("lesion", "plain", "texture")
    probabilities = classifier.probabilities(images)
    assert probabilities.shape == (24, 3)
    assert probabilities.sum(1) == pytest.approx(np.ones(24))
    # The fastest order of sums differs between batches of different sizes.
    assert classifier.probabilities(images[:, :, ::-1].copy()) == pytest.approx(probabilities, abs=1e-5)
    features = classifier.features(images)
    assert features.shape == (24, 2 * MAX_WIDTHS * QUICK.width)
    assert features.min() >= 0
    assert classifier.features(images[3:5]) == pytest.approx(features[3:5], abs=1e-4)
    assert classifier.features(images[:0]).shape == (0, 2 * MAX_WIDTHS * QUICK.width)
    assert classifier.probabilities(images[:0]).shape == (0, 3)


def test_the_same_seed_gives_the_same_classifier() -> None:
    images, labels = planted(24, 0)
    few = QUICK.model_copy(update={"steps": 4})
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = train_classifier(images, labels, few)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are its own"
    torch.manual_seed(2)
    assert np.array_equal(one.features(images), train_classifier(images, labels, few).features(images))
    for change in ({"seed": 1}, {"augment": True}):
        other = train_classifier(images, labels, few.model_copy(update=change))
        assert not np.array_equal(one.features(images), other.features(images))


@pytest.mark.parametrize("size", [64, 97, 256])
def test_any_size_is_taken(size: int) -> None:
    images, labels = planted(6, 0, size)
    classifier = train_classifier(images, labels, ClassifierConfig(steps=1, batch_size=2, width=8))
    assert classifier.features(images).shape == (6, 32)


def test_what_cannot_be_learnt_is_refused() -> None:
    images, labels = planted(6, 0)
    with pytest.raises(DataError, match="there are 5 labels, needed grey images"):
        train_classifier(images, labels[:5], QUICK)
    with pytest.raises(DataError, match="all 6 images have the label plain, needed two labels"):
        train_classifier(images, ["plain"] * 6, QUICK)
    with pytest.raises(DataError, match="needed 32 pixels or more"):
        train_classifier(images[:, :16, :16], labels, QUICK)
