"""Copies are found, plain, mirrored, noisy and smoothed; real images of other patients are not called so."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from data.simulate import simulate
from evaluation.features import Features
from evaluation.memorisation import FEATURES, PIXELS, Memorisation, memorisation, suspects_among
from evaluation.nearest import nearest, thumbnails
from evaluation.realism import Scale
from evaluation.ultrasound_statistics import image_statistics

SIZE = 64
NUM_TRAIN, NUM_HELD_OUT, NUM_NEW = 120, 60, 60


def simulated(first: int, num: int) -> NDArray[np.uint8]:
    return np.stack([simulate("breast", 5, index, SIZE).image for index in range(first, first + num)])


IMAGES = simulated(0, NUM_TRAIN + NUM_HELD_OUT + NUM_NEW)
TRAINING, HELD_OUT, NEW = np.split(IMAGES, [NUM_TRAIN, NUM_TRAIN + NUM_HELD_OUT])
# A stand-in for a network, to be quick.
SCALE = Scale(image_statistics(TRAINING))
STATISTICS = Features("statistics", lambda images: SCALE(image_statistics(images)))
CLUSTERS = [str(number) for number in range(NUM_TRAIN)]


def found_of(generated: NDArray[np.uint8]) -> Memorisation:
    return memorisation(generated, HELD_OUT, TRAINING, CLUSTERS, STATISTICS)


def copies(kind: str) -> NDArray[np.uint8]:
    images = TRAINING[:40].astype(np.float64)
    if kind == "noisy":
        images += np.random.default_rng(0).normal(0, 8, images.shape)
    if kind == "smooth":
        images = gaussian_filter(images, (0, 0.7, 0.7))
    if kind == "brighter":
        images = 1.1 * images + 5
    if kind == "mirrored":
        images = images[:, :, ::-1]
    return images.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("kind", ["plain", "mirrored", "noisy", "smooth", "brighter"])
def test_copies_are_flagged(kind: str) -> None:
    found = found_of(copies(kind))
    assert found.is_flagged
    assert found.suspects[PIXELS].is_flagged
    assert found.suspects[PIXELS].share > 0.9
    assert (found.nearest[PIXELS].places == np.arange(40)).mean() > 0.95
    assert found.nearest[PIXELS].is_mirrored.mean() == pytest.approx(1 if kind == "mirrored" else 0, abs=0.05)


def test_real_images_of_other_patients_are_not_flagged() -> None:
    found = found_of(NEW)
    assert not found.is_flagged
    for space in (PIXELS, FEATURES):
        of = found.suspects[space]
        assert of.expected == pytest.approx(1 / 61)
        assert of.low <= of.share <= of.high
        assert of.share < of.expected_high


def test_smooth_images_are_not_called_copies() -> None:
    # They are nearer to every training image than real ones are, so that a plain distance would flag them.
    smooth = gaussian_filter(NEW.astype(np.float64), (0, 4, 4)).astype(np.uint8)
    found = found_of(smooth)
    assert np.median(found.nearest[PIXELS].distances) < np.median(found.held_out[PIXELS].distances)
    assert not found.suspects[PIXELS].is_flagged


def test_a_few_copies_among_many_are_the_worst() -> None:
    generated = np.concatenate([NEW[:30], copies("noisy")[:3], NEW[30:50]])
    found = found_of(generated)
    assert {place for place, _ in found.worst(3)} == {30, 31, 32}
    assert [space for _, space in found.worst(3)] == [PIXELS] * 3
    assert found.suspects[PIXELS].num_suspects >= 3


def test_the_nearest_is_the_plain_search() -> None:
    training, images = thumbnails(TRAINING), thumbnails(NEW[:4])
    mirrored = thumbnails(NEW[:4, :, ::-1])
    clusters = [str(number // 3) for number in range(NUM_TRAIN)]
    found = nearest(images, mirrored, training, clusters)
    for number in range(4):
        plain = np.linalg.norm(training - images[number], axis=1)
        turned = np.linalg.norm(training - mirrored[number], axis=1)
        least = np.minimum(plain, turned)
        place = int(least.argmin())
        assert found.places[number] == place
        assert found.distances[number] == pytest.approx(least[place])
        assert found.is_mirrored[number] == (turned[place] < plain[place])
        others = sorted(least[other] for other in range(NUM_TRAIN) if clusters[other] != clusters[place])[:20]
        assert found.ratios[number] == pytest.approx(least[place] / np.mean(others))
    # A length of 1 and no mean: the distance is that of the correlation.
    correlation = np.corrcoef(images[0], training[0])[0, 1]
    assert np.linalg.norm(images[0] - training[0]) == pytest.approx(np.sqrt(2 - 2 * correlation))


def test_what_is_expected_is_kept_whatever_the_distribution() -> None:
    rng = np.random.default_rng(0)
    shares, expected, flags = [], 0.0, []
    for _ in range(300):
        held_out, new = rng.exponential(size=(2, 250)) ** 3
        found = suspects_among(new, held_out)
        shares.append(found.share)
        flags.append(found.is_flagged)
        expected = found.expected
    assert expected == pytest.approx(2 / 251)
    assert np.mean(shares) == pytest.approx(expected, abs=3 * np.std(shares) / np.sqrt(300))
    assert np.mean(flags) < 0.025
    assert suspects_among(np.full(30, 0.0), np.arange(1.0, 251)).is_flagged
