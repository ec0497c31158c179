"""Dice and Hausdorff distances against plain references and their laws; the intervals; what a comparison reports."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from evaluation.mask_agreement import beside_unrelated, dice, hausdorff_95, mask_agreement, score
from evaluation.masked_images import MaskedImages
from evaluation.segmenter import Segmenter
from evaluation.verdicts import of_mask

MASKS = arrays(np.uint8, (7, 9), elements=st.integers(0, 2))
CLASSES = ("background", "lesion", "head")


def plain_dice(one: NDArray[np.uint8], other: NDArray[np.uint8], number: int) -> float:
    pixels = [{tuple(place) for place in np.argwhere(mask == number)} for mask in (one, other)]
    return 2 * len(pixels[0] & pixels[1]) / (len(pixels[0]) + len(pixels[1]))


def outline(mask: NDArray[np.uint8], number: int) -> list[tuple[int, int]]:
    padded = np.pad(mask == number, 1)
    places = []
    for row, column in np.argwhere(padded):
        neighbours = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
        if not all(padded[neighbour] for neighbour in neighbours):
            places.append((int(row), int(column)))
    return places


def plain_hausdorff_95(one: NDArray[np.uint8], other: NDArray[np.uint8], number: int) -> float:
    outlines = outline(one, number), outline(other, number)
    farthest = []
    for from_, to in (outlines, outlines[::-1]):
        farthest.append(np.percentile([min(math.dist(place, goal) for goal in to) for place in from_], 95))
    return float(max(farthest))


@given(MASKS, MASKS)
def test_both_measures_are_as_written_down_plainly_and_symmetric(
    one: NDArray[np.uint8], other: NDArray[np.uint8]
) -> None:
    if (one == 1).any() and (other == 1).any():
        assert dice(one, other, 1) == plain_dice(one, other, 1)
        # Distances are square roots of whole numbers, taken by two libraries: one rounding apart.
        assert hausdorff_95(one, other, 1) == pytest.approx(plain_hausdorff_95(one, other, 1), rel=1e-12)
        assert dice(one, other, 1) == dice(other, one, 1)
        assert hausdorff_95(one, other, 1) == hausdorff_95(other, one, 1)


@given(MASKS)
def test_a_mask_agrees_with_itself(mask: NDArray[np.uint8]) -> None:
    if (mask == 1).any():
        assert dice(mask, mask, 1) == 1
        assert hausdorff_95(mask, mask, 1) == 0


@given(MASKS)
def test_disjoint_masks_share_nothing(mask: NDArray[np.uint8]) -> None:
    other = np.where(mask == 1, 2, 1).astype(np.uint8)
    assert dice(mask, other, 1) == 0


def test_a_shift_is_as_far_as_it_is() -> None:
    one, other = np.zeros((2, 32, 32), np.uint8)
    one[8:16, 8:16] = other[8:16, 13:21] = 1
    assert hausdorff_95(one, other, 1) == 5
    assert dice(one, other, 1) == pytest.approx(3 / 8)


def test_what_neither_has_is_nothing_to_agree_on_and_what_one_has_is_infinitely_far() -> None:
    empty, full = np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8)
    assert math.isnan(dice(empty, empty, 1))
    assert math.isnan(hausdorff_95(empty, empty, 1))
    for pair in ((empty, full), (full, empty)):
        assert dice(*pair, 1) == 0
        assert hausdorff_95(*pair, 1) == math.inf


def squares(num: int) -> NDArray[np.uint8]:
    """Return masks with a square of class 1, each elsewhere; the last one is empty."""
    masks = np.zeros((num, 32, 32), np.uint8)
    for place in range(num - 1):
        masks[place, 2 + 3 * place : 12 + 3 * place, 5 + place : 17 + place] = 1
    return masks


def masked(images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> MaskedImages:
    names = tuple(str(place) for place in range(len(masks)))
    return MaskedImages(images, masks, names, names)


class ReadsBrightness(Segmenter):
    """Finds class 1 where an image is bright, so that what it predicts is known."""

    def __init__(self) -> None:
        self.classes, self.numbers = CLASSES, np.array([0, 1], np.uint8)

    def predict(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return (images_NHW > 127).astype(np.uint8)


def test_a_comparison_tells_following_a_mask_from_not_looking_at_it() -> None:
    masks = squares(7)
    real = masked(200 * masks, masks)
    following = mask_agreement(ReadsBrightness(), real, real.redrawn(200 * masks)).classes["lesion"]
    assert following.real.dice.value == following.generated.dice.value == 1
    assert following.generated.hausdorff_95_px.value == 0
    assert (following.generated.num_images, following.generated.num_without) == (6, 1)
    assert following.unrelated_dice.high < 0.6
    assert following.gain.low > 0.2
    of_another = np.concatenate([np.roll(masks[:-1], 3, axis=0), masks[-1:]])
    heedless = mask_agreement(ReadsBrightness(), real, real.redrawn(200 * of_another)).classes["lesion"]
    assert heedless.real.dice.value == 1
    assert heedless.generated.dice.high < 0.6


def test_images_of_one_mask_have_no_other_to_be_compared_with() -> None:
    masks = squares(4)[[0, 0, 0, 1]]
    drawn = MaskedImages(200 * masks, masks, ("0", "1", "2", "3"), ("a", "a", "a", "b"))
    unrelated, gain = beside_unrelated(masks, drawn, 1, 0)
    expected = dice(masks[0], masks[3], 1)
    assert unrelated.value == pytest.approx(expected), "those beside a mask of their own are left out"
    assert gain.value == pytest.approx(1 - unrelated.value)
    alone = MaskedImages(200 * masks[:3], masks[:3], ("0", "1", "2"), ("a", "a", "a"))
    assert all(math.isnan(of.value) for of in beside_unrelated(masks[:3], alone, 1, 0))


def test_what_is_missed_or_invented_is_counted() -> None:
    masks = squares(7)
    predicted = masks.copy()
    predicted[0] = 0
    predicted[-1, 3, 3] = 1
    found = score(predicted, masked(200 * masks, masks), 1, 0)
    assert (found.num_images, found.num_missed, found.num_without, found.num_invented) == (6, 1, 1, 1)
    assert found.dice.value == pytest.approx(5 / 6)
    assert found.hausdorff_95_px.value == 0
    predicted[:5] = 0
    assert score(predicted, masked(200 * masks, masks), 1, 0).hausdorff_95_px.value == math.inf
    unrelated, gain = beside_unrelated(predicted[5:], masked(masks[5:], masks[5:]), 1, 0)
    assert math.isnan(unrelated.value)
    assert math.isnan(gain.value)


def test_the_json_has_no_number_that_json_lacks() -> None:
    masks = squares(4)
    real = masked(200 * masks, masks)
    agreement = mask_agreement(ReadsBrightness(), real, real.redrawn(0 * masks), reconstructed=real)
    written = json.loads(json.dumps(agreement.to_json(), allow_nan=False))
    lesion = written["classes"]["lesion"]
    assert lesion["real"] == lesion["reconstructed"]
    assert lesion["generated"]["dice"]["value"] == 0
    assert lesion["generated"]["hausdorff_95_px"]["value"] is None
    assert lesion["generated"]["num_missed"] == 3


def test_a_class_that_the_segmenter_never_saw_is_named_and_not_looked_for() -> None:
    one = squares(4)
    masks = np.where(one, one, 2 * np.roll(one, 14, axis=2)).astype(np.uint8)
    real = masked(200 * one, masks)
    agreement = mask_agreement(ReadsBrightness(), real, real)
    assert list(agreement.classes) == ["lesion"]
    assert agreement.unseen == (CLASSES[2],)


class ReadsTwoLevels(Segmenter):
    """Finds class 1 in grey and class 2 in white."""

    def __init__(self) -> None:
        self.classes, self.numbers = CLASSES, np.array([0, 1, 2], np.uint8)

    def predict(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return (images_NHW // 100).astype(np.uint8)


def test_two_classes_that_took_each_others_place_are_not_followed() -> None:
    one = squares(8)
    masks = np.where(one, one, 2 * np.roll(one, 14, axis=2)).astype(np.uint8)
    exchanged = np.array([0, 2, 1], np.uint8)[masks]
    real = masked(100 * masks, masks)
    followed = mask_agreement(ReadsTwoLevels(), real, real.redrawn(100 * masks)).classes
    assert [of_mask(followed[name]).level for name in ("lesion", "head")] == ["good", "good"]
    swapped = mask_agreement(ReadsTwoLevels(), real, real.redrawn(100 * exchanged)).classes
    assert [of_mask(swapped[name]).level for name in ("lesion", "head")] == ["bad", "bad"]
    assert swapped["head"].generated.num_missed == 0, "both are there, each in the other's place"
