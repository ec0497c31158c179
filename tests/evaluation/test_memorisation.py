"""Copies are found, plain, mirrored, noisy and smoothed; real images of other patients are not called so."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from data.manifest import ManifestRow
from data.simulate import simulate
from evaluation.features import Features
from evaluation.memorisation import (
    FEATURES,
    PIXELS,
    Memorisation,
    Suspects,
    calibrated,
    memorisation,
    suspects_among,
)
from evaluation.nearest import nearest, thumbnails
from evaluation.real_images import RealImages
from evaluation.realism import Scale
from evaluation.ultrasound_statistics import image_statistics
from evaluation.verdicts import of_copies

SIZE = 64
NUM_TRAIN, NUM_HELD_OUT, NUM_NEW = 120, 60, 60
PATIENTS = [str(number) for number in range(250)]


def simulated(first: int, num: int) -> NDArray[np.uint8]:
    return np.stack([simulate("breast", 5, index, SIZE).image for index in range(first, first + num)])


IMAGES = simulated(0, NUM_TRAIN + NUM_HELD_OUT + NUM_NEW)
TRAINING, HELD_OUT, NEW = np.split(IMAGES, [NUM_TRAIN, NUM_TRAIN + NUM_HELD_OUT])
# A stand-in for a network, to be quick.
SCALE = Scale(image_statistics(TRAINING))
STATISTICS = Features("statistics", lambda images: SCALE(image_statistics(images)))


def real(images: NDArray[np.uint8], of: str, database: str = "breast", per_patient: int = 1) -> RealImages:
    rows = [
        ManifestRow(
            id=f"{database}/{of}/{number}",
            image=Path("gone.png"),
            prompts=("",),
            label="",
            database=database,
            sha256="",
            masks_sha256=(),
            width=SIZE,
            height=SIZE,
            cluster=f"{of} {number // per_patient}",
        )
        for number in range(len(images))
    ]
    return RealImages(images, tuple(rows))


def found_of(
    generated: NDArray[np.uint8], held_out: RealImages | None = None, features: Features = STATISTICS
) -> Memorisation:
    databases = ["breast"] * len(generated)
    return memorisation(
        generated, databases, held_out or real(HELD_OUT, "held out"), real(TRAINING, "training"), features
    )


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


def test_a_handful_of_verbatim_copies_is_bad_and_many_new_images_are_not() -> None:
    # 60 held-out patients: a count of 3 in 60 is what chance may give, copies or not.
    few = found_of(np.concatenate([NEW[:57], TRAINING[:3]]))
    assert not few.is_flagged
    assert few.num_copies == 3
    assert of_copies(few).level == "bad"
    assert of_copies(few).text == "3 images copied from training images: look at the pairs"
    new = found_of(NEW)
    assert new.num_copies == 0
    assert of_copies(new).level == "good"


def test_more_suspects_than_expected_are_to_be_looked_at() -> None:
    found = found_of(np.concatenate([NEW[:40], zoomed(TRAINING[:6], 1.1)]))
    assert (found.is_flagged, found.num_copies) == (False, 0)
    assert found.num_suspects > 1
    verdict = of_copies(found)
    assert (verdict.level, verdict.text) == ("fair", f"{found.num_suspects} suspects: look at the pairs")


def zoomed(images: NDArray[np.uint8], by: float) -> NDArray[np.uint8]:
    side = round(SIZE / by)
    box = ((SIZE - side) // 2,) * 2 + ((SIZE + side) // 2,) * 2
    return np.stack([np.asarray(Image.fromarray(of).resize((SIZE, SIZE), box=box)) for of in images])


def test_features_alone_find_what_moved_where_their_network_looks_past_that() -> None:
    # Amplitudes of frequencies do not tell where something lies.
    blind = Features("amplitudes", lambda images: np.abs(np.fft.rfft2(images)).reshape(len(images), -1))
    found = found_of(np.roll(TRAINING[:40], (8, 8), axis=(1, 2)), features=blind)
    assert found.suspects[FEATURES].is_flagged
    assert found.suspects[FEATURES].num_copies == found.num_copies == 40
    assert not found.suspects[PIXELS].is_flagged
    assert found.suspects[PIXELS].num_copies == 0


def test_a_patient_counts_once_however_many_images_there_are() -> None:
    once = calibrated(np.array([0.5, 0.8, 0.9]), ["a", "b", "c"])
    again = calibrated(np.array([0.5, 0.7, 0.7, 0.8, 0.95, 0.9]), ["a", "a", "a", "b", "b", "c"])
    assert once == again
    assert (once.num_patients, once.threshold, once.least, once.expected) == (3, 0.5, 0.5, 0.25)
    few = found_of(NEW, real(HELD_OUT, "held out", per_patient=20)).suspects[PIXELS]
    assert few.databases["breast"].num_patients == 3
    # Of three patients a share is hardly known.
    assert few.expected_high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert few.smallest_found is not None
    assert few.smallest_found > 0.7


def test_each_database_is_judged_by_its_own_patients() -> None:
    ratios = np.array([0.6, 0.6, 0.6, 0.6])
    of = {"near": calibrated(np.full(50, 0.5), PATIENTS[:50]), "far": calibrated(np.full(50, 0.9), PATIENTS[:50])}
    found = suspects_among(ratios, ["near", "near", "far", "far"], of)
    assert found.num_suspects == 2, "images nearer than any of that database's patients"
    assert found.num_copies == 0
    assert suspects_among(ratios, ["near"] * 4, of).num_suspects == 0


def test_the_smallest_share_is_just_enough() -> None:
    of = {"": calibrated(np.linspace(1, 2, 200), PATIENTS[:200])}

    def with_suspects(num: int) -> Suspects:
        return suspects_among(np.array([0.7] * num + [1.5] * (160 - num)), [""] * 160, of)

    found = with_suspects(0).smallest_found
    assert found is not None
    num = round(found * 160)
    assert with_suspects(num).is_flagged
    assert not with_suspects(num - 1).is_flagged
    alone = suspects_among(np.zeros(3), [""] * 3, {"": calibrated(np.ones(1), ["a"])})
    assert alone.smallest_found is None, "one patient tells nothing of a share"
    assert alone.num_copies == 3


def test_what_chance_gives_is_what_it_gave() -> None:
    rng = np.random.default_rng(0)
    counts, said = [], {}
    for _ in range(2000):
        held_out, new = rng.random(40), rng.random(60)
        found = suspects_among(new, [""] * 60, {"": calibrated(held_out, PATIENTS[:40])})
        counts.append(found.num_suspects)
        said[found.num_suspects] = found.by_chance
    for count in (0, 1, 3, 6):
        # A share of 2000 has a standard error of 0.011 at most.
        assert np.mean(np.array(counts) >= count) == pytest.approx(said[count], abs=0.035)


def test_what_is_expected_is_kept_whatever_the_distribution() -> None:
    rng = np.random.default_rng(0)
    shares, expected, flags = [], 0.0, []
    for _ in range(300):
        held_out, new = rng.exponential(size=(2, 250)) ** 3
        found = suspects_among(new, [""] * 250, {"": calibrated(held_out, PATIENTS[:250])})
        shares.append(found.share)
        flags.append(found.is_flagged)
        expected = found.expected
    assert expected == pytest.approx(2 / 251)
    assert np.mean(shares) == pytest.approx(expected, abs=3 * np.std(shares) / np.sqrt(300))
    assert np.mean(flags) < 0.025
    of = {"": calibrated(np.arange(1.0, 251), PATIENTS[:250])}
    assert suspects_among(np.full(30, 0.0), [""] * 30, of).is_flagged
