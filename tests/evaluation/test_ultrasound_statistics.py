"""The statistics of images: against what is known of simulated speckle, and against the plain way to compute them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from evaluation.ultrasound_statistics import (
    DYNAMIC_RANGE_DB,
    GLCM_LEVELS,
    PATCH_PIXELS,
    STATISTICS,
    WHITE,
    co_occurrence,
    correlation_width,
    image_statistics,
    patches,
    speckle,
    tissue,
)


def compressed(envelope: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return an envelope as grey levels: the dynamic range below its maximum, as a scanner shows it."""
    decibel = 20 * np.log10(np.maximum(envelope / envelope.max(), 1e-9))
    return np.clip(np.rint((decibel / DYNAMIC_RANGE_DB + 1) * WHITE), 0, WHITE).astype(np.uint8)


def rayleigh(side: int, seed: int = 0, looks: int = 1) -> NDArray[np.float64]:
    """Return the root of the mean intensity of `looks` images of fully developed speckle, uncorrelated."""
    field = np.random.default_rng(seed).normal(size=(looks, 2, side, side))
    envelope: NDArray[np.float64] = np.sqrt((field**2).sum(1).mean(0))
    return envelope


def patches_of(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return patches(image, tissue(image))


def test_fully_developed_speckle() -> None:
    found = patches_of(compressed(rayleigh(512)))
    assert len(found) > 900
    snr, m = speckle(found)
    # In closed form sqrt(pi / (4 - pi)) = 1.913 and 1. Of 256 pixels, the median lies within 2 % of them: a variance
    # is skewed to the right.
    assert snr == pytest.approx(1.913, rel=0.02)
    assert m == pytest.approx(1, rel=0.04)


def test_compounding_raises_both() -> None:
    # The mean intensity of n looks is gamma distributed with shape n: so Nakagami's m is n.
    snr, m = speckle(patches_of(compressed(rayleigh(512, looks=4))))
    assert m == pytest.approx(4, rel=0.05)
    assert snr == pytest.approx(3.94, rel=0.03)  # gamma(4.5)^2 / (4 gamma(4)^2 - gamma(4.5)^2), its root


def test_gain_changes_neither_and_the_dynamic_range_does() -> None:
    envelope = rayleigh(256)
    grey = compressed(np.maximum(envelope, envelope.max() / 50))  # so that nothing clips
    darker = (grey - 20).astype(np.uint8)
    assert speckle(patches_of(darker)) == pytest.approx(speckle(patches_of(grey)), rel=1e-6)
    flatter = np.rint(255 - (255 - grey.astype(float)) * 2 / 3).astype(np.uint8)
    assert speckle(patches_of(flatter))[0] > 1.3 * speckle(patches_of(grey))[0]


def test_the_width_of_a_known_point_spread() -> None:
    noise = np.random.default_rng(0).normal(size=(512, 512))
    blurred = gaussian_filter(noise, (0.8, 1.4))
    pieces = patches_of(np.clip(128 + 30 * blurred / blurred.std(), 1, 254).astype(np.uint8))
    # White noise blurred by a Gaussian has an autocorrelation of sqrt(2) times its width; that of lines of 16 pixels
    # about their own means is narrower by 10 to 20 %.
    for axis, sigma in enumerate((0.8, 1.4)):
        known = 2 * np.sqrt(2 * np.log(2)) * np.sqrt(2) * sigma
        width = correlation_width(pieces if axis == 0 else pieces.swapaxes(1, 2))
        assert 0.75 * known < width < known


def test_the_width_by_hand() -> None:
    # Lines 1 0 1 0 .. about 0.5: products 1/4 and -1/4, so half of the first is crossed at a quarter of a pixel.
    stripes = np.zeros((1, 16, 16))
    stripes[:, ::2] = 1
    assert correlation_width(stripes) == pytest.approx(0.5)
    assert correlation_width(stripes.swapaxes(1, 2)) == 16, "no line down the columns has anything in it"


def test_co_occurrence_is_haralicks() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (24, 20)).astype(np.uint8)
    is_tissue = generator.random((24, 20)) < 0.7
    expected = []
    for down, across in ((1, 0), (0, 1)):
        counts = np.zeros((GLCM_LEVELS, GLCM_LEVELS))
        for y in range(24 - down):
            for x in range(20 - across):
                if is_tissue[y, x] and is_tissue[y + down, x + across]:
                    one, other = int(image[y, x]) // 16, int(image[y + down, x + across]) // 16
                    counts[one, other] += 1
                    counts[other, one] += 1
        p = counts / counts.sum()
        levels = range(GLCM_LEVELS)
        contrast = sum((i - j) ** 2 * p[i, j] for i in levels for j in levels)
        expected.append((contrast, sum(p[i, j] / (1 + (i - j) ** 2) for i in levels for j in levels)))
    assert co_occurrence(image, is_tissue) == pytest.approx(np.mean(expected, axis=0))


def test_what_is_black_around_a_sector_does_not_count() -> None:
    image = compressed(rayleigh(128))
    framed = np.zeros((256, 256), np.uint8)
    framed[64:192, 64:192] = image
    framed[:16, :16] = 3  # noise of JPEG
    inner, outer = image_statistics([image, framed])
    assert patches_of(framed).shape == patches_of(image).shape
    # Two black pixels beside tissue still count, 6 % of all here: what is around them is not black.
    assert outer[:4] == pytest.approx(inner[:4])
    assert outer[STATISTICS.index("brightness")] == pytest.approx(inner[STATISTICS.index("brightness")], rel=0.07)


def test_patches_that_are_clipped_do_not_count() -> None:
    image = compressed(rayleigh(64))
    image[:PATCH_PIXELS, :PATCH_PIXELS] = 255
    assert len(patches_of(image)) == 15


@pytest.mark.parametrize("level", [0, 100, 255])
def test_an_image_with_nothing_in_it_has_finite_statistics(level: int) -> None:
    (found,) = image_statistics([np.full((64, 64), level, np.uint8)])
    assert np.isfinite(found).all()
    snr, m, axial, lateral, contrast, homogeneity, brightness = found
    assert (contrast, homogeneity, brightness) == (0, 1, level)
    assert (axial, lateral) == ((16, 16) if level == 100 else (0, 0))
    assert (snr, m) == (pytest.approx((128, 4089), rel=0.01) if level == 100 else (0, 0))


def test_no_image_is_an_empty_table() -> None:
    assert image_statistics([]).shape == (0, len(STATISTICS))
