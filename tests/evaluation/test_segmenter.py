"""The segmenter learns what there is to learn, and nothing where masks are of other images."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.errors import DataError
from data.manifest import PALETTE
from data.simulate import MASK_CLASSES, simulate
from evaluation.jitter import jittered
from evaluation.mask_agreement import dice
from evaluation.segmenter import Segmenter, SegmenterConfig, segmentation_loss, train_segmenter

SIZE = 64
NUM_TRAIN, NUM_HELD_OUT = 72, 24
QUICK = SegmenterConfig(steps=160, batch_size=8, width=8, lr=1e-2)
LESION, VENTRICLE, MYOCARDIUM, ATRIUM = (
    PALETTE.index(name) for name in ("lesion", "left ventricle", "myocardium", "left atrium")
)


def simulated(preset: str, num: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    made = [simulate(preset, seed, index, SIZE) for index in range(num)]
    numbers = np.zeros(256, np.uint8)
    for value, name in MASK_CLASSES[preset].items():
        numbers[value] = PALETTE.index(name)
    return np.stack([one.image for one in made]), numbers[np.stack([one.mask for one in made])]


def both_organs(num: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    breast, heart = simulated("breast", num, seed), simulated("cardiac", num, seed)
    return np.concatenate([breast[0], heart[0]]), np.concatenate([breast[1], heart[1]])


@pytest.fixture(scope="module")
def training() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return both_organs(NUM_TRAIN, 30)


@pytest.fixture(scope="module")
def held_out() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return both_organs(NUM_HELD_OUT, 31)


def mean_dice(segmenter: Segmenter, images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> dict[int, float]:
    pairs = list(zip(segmenter.predict(images), masks, strict=True))
    numbers = (LESION, VENTRICLE, MYOCARDIUM, ATRIUM)
    return {n: float(np.mean([dice(p, mask, n) for p, mask in pairs if (mask == n).any()])) for n in numbers}


def test_a_few_steps_learn_two_organs_and_shuffled_masks_teach_less(
    training: tuple[NDArray[np.uint8], NDArray[np.uint8]], held_out: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> None:
    segmenter = train_segmenter(*training, PALETTE, QUICK)
    assert segmenter.names == ("lesion", "left ventricle", "myocardium", "left atrium")
    learnt = mean_dice(segmenter, *held_out)
    images, masks = training
    # Within an organ, so that only the pairing is lost.
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(NUM_TRAIN), NUM_TRAIN + rng.permutation(NUM_TRAIN)])
    mispaired = mean_dice(train_segmenter(images, masks[order], PALETTE, QUICK), *held_out)
    # Measured: 0.76, 0.90, 0.77, 0.86 and, as the average heart is much like any other, 0.32, 0.81, 0.60, 0.68.
    for number, floor in {LESION: 0.55, VENTRICLE: 0.855, MYOCARDIUM: 0.69, ATRIUM: 0.76}.items():
        assert learnt[number] > floor > mispaired[number]


def test_four_pixels_at_once_learn_masks_too(
    training: tuple[NDArray[np.uint8], NDArray[np.uint8]], held_out: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> None:
    learnt = mean_dice(train_segmenter(*training, PALETTE, QUICK.model_copy(update={"pixels_at_once": 4})), *held_out)
    for number, floor in {LESION: 0.55, VENTRICLE: 0.8, MYOCARDIUM: 0.6, ATRIUM: 0.65}.items():
        assert learnt[number] > floor


def test_the_same_seed_gives_the_same_segmenter(training: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    images, masks = (of[::6] for of in training)
    few = QUICK.model_copy(update={"steps": 4})
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = train_segmenter(images, masks, PALETTE, few)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are its own"
    torch.manual_seed(2)
    assert np.array_equal(one.predict(images), train_segmenter(images, masks, PALETTE, few).predict(images))
    other = train_segmenter(images, masks, PALETTE, few.model_copy(update={"seed": 1}))
    assert not np.array_equal(one.predict(images), other.predict(images))


def test_a_mirror_image_has_the_mirrored_mask(training: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    images, masks = (of[::6] for of in training)
    segmenter = train_segmenter(images, masks, PALETTE, QUICK.model_copy(update={"steps": 10}))
    found, mirrored = segmenter.predict(images), segmenter.predict(images[..., ::-1].copy())[..., ::-1]
    # Exact but for ties: the two halves of the mean are added in the other order.
    assert (found != mirrored).mean() < 1e-3


@pytest.mark.parametrize("at_once", [2, 4])
@pytest.mark.parametrize("shape", [(40, 72), (64, 64), (65, 33)])
def test_any_shape_is_predicted_at_its_own_size(shape: tuple[int, int], at_once: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    masks = np.zeros_like(images)
    masks[:, 5:20, 5:20] = LESION
    config = QUICK.model_copy(update={"steps": 2, "pixels_at_once": at_once})
    found = train_segmenter(images, masks, PALETTE, config).predict(images)
    assert found.shape == images.shape
    assert set(np.unique(found)) <= {0, LESION}


def test_jitter_moves_an_image_and_its_labels_together_and_never_upside_down() -> None:
    labels = torch.zeros(64, 48, 48, dtype=torch.long)
    labels[:, 6:14, 4:20] = 3
    images = torch.where(labels == 3, 0.9, 0.1)
    shown, moved = jittered(images, labels, torch.Generator().manual_seed(0))
    assert set(moved.unique().tolist()) == {0, 3}
    assert (shown >= 0).all()
    assert (shown <= 1).all()
    inside = torch.stack(
        [image[label == 3].mean() - image[label == 0].mean() for image, label in zip(shown, moved, strict=True)]
    )
    assert (inside > 0.25).all()
    rows, columns = (
        torch.stack([(label == 3).nonzero()[:, axis].float().mean() for label in moved]) for axis in (0, 1)
    )
    assert (rows < 24).all()
    assert 0.3 < (columns > 24).float().mean() < 0.7


def test_the_loss_is_cross_entropy_and_dice_as_written_down() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    probabilities = logits.softmax(1)
    entropy = 0.0
    overlap, sizes = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for image in range(2):
        for row in range(4):
            for column in range(4):
                wanted = int(labels[image, row, column])
                entropy -= math.log(probabilities[image, wanted, row, column]) / 32
                overlap[wanted] += float(probabilities[image, wanted, row, column])
                sizes[wanted] += 1
                for number in range(3):
                    sizes[number] += float(probabilities[image, number, row, column])
    logarithms = [math.log((2 * overlap[number] + 1) / (sizes[number] + 1)) for number in (1, 2)]
    # float32 sums of 32 pixels
    assert float(segmentation_loss(logits, labels)) == pytest.approx(entropy - sum(logarithms) / 2, rel=1e-5)


def test_what_cannot_be_trained_on_is_refused() -> None:
    images = np.zeros((2, 16, 16), np.uint8)
    with pytest.raises(DataError, match="all 2 masks are empty"):
        train_segmenter(images, images, PALETTE, QUICK)
    with pytest.raises(DataError, match=r"images have shape \(2, 16, 16, 3\) and masks \(2, 16, 16\).* grey"):
        train_segmenter(np.zeros((2, 16, 16, 3), np.uint8), images, PALETTE, QUICK)
    with pytest.raises(DataError, match="class number 16, needed less than 16"):
        train_segmenter(images, images + 16, PALETTE, QUICK)
