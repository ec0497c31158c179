"""What scanners and people drew over an image: letters, callipers, colour Doppler."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data.quality.area import Box

# A drawn stroke is brighter by this than what lies two pixels beside it, on both sides.
STEEP = 25
# Along so many pixels of it the grey level stays the same but for what JPEG adds; one crossing stroke is passed over.
STROKE = 7
STEADY = 20
# In smaller pictures speckle is as fine as strokes; below it only colours and what lies beside the image are found.
SHORTEST_SIDE = 192
# Beside the scanner's image all is black, but for what is drawn there: marks as bright as this and of so many pixels.
BRIGHT = 100
SMALLEST_MARK = 12
# The image's edge is blurred by so much of the longest side.
MARGIN_SHARE = 0.02
# Marks this near belong together (pixels).
NEAR = 3
# A pixel is coloured from this difference of its largest to its smallest channel on: JPEG tints grey by less.
COLOURED = 48
# Below it, coloured pixels are callipers and marks; from it on, a Doppler box.
DOPPLER_SHARE = 0.005
# A picture is tinted as a whole, which some scanners do, if more of its bright pixels than this have colour.
TINTED_SHARE = 0.8


@dataclass(frozen=True)
class Overlays:
    """What is drawn over an image. marks: boxes of letters, callipers, rulers. coloured_share: of all pixels."""

    marks: tuple[Box, ...]
    coloured_share: float
    is_tinted: bool

    @property
    def has_doppler(self) -> bool:
        """Whether a large part has colours, but not the whole picture one tint."""
        return self.coloured_share >= DOPPLER_SHARE and not self.is_tinted

    @property
    def has_marks(self) -> bool:
        """Whether there are letters or callipers, grey or coloured."""
        return bool(self.marks) or (0 < self.coloured_share < DOPPLER_SHARE and not self.is_tinted)


def find_overlays(rgb_HWC: NDArray[np.uint8], grey_HW: NDArray[np.uint8], area_HW: NDArray[np.bool_]) -> Overlays:
    """Return what is drawn over a picture of luminance `grey_HW`, of which `area_HW` is the scanner's image."""
    spread = rgb_HWC.max(axis=-1).astype(np.int16) - rgb_HWC.min(axis=-1)
    # A few single pixels are compression.
    coloured = ndimage.binary_opening(spread >= COLOURED, structure=np.ones((2, 2), dtype=np.bool_))
    bright = grey_HW >= 40
    is_tinted = bool(bright.any() and (spread[bright] >= COLOURED // 3).mean() > TINTED_SHARE)
    marks = _beside(grey_HW, area_HW)
    if min(grey_HW.shape) >= SHORTEST_SIDE:
        marks |= _crossings(grey_HW.astype(np.int16))
    labels, _ = ndimage.label(ndimage.binary_dilation(marks, iterations=NEAR))
    boxes = [(across.start, down.start, across.stop, down.stop) for down, across in ndimage.find_objects(labels)]
    return Overlays(tuple(boxes), float(coloured.mean()), is_tinted)


def _beside(grey_HW: NDArray[np.uint8], area_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the bright marks outside the area."""
    margin = max(2, round(MARGIN_SHARE * max(grey_HW.shape)))
    bright = (grey_HW >= BRIGHT) & ~ndimage.maximum_filter(area_HW, size=2 * margin + 1)
    labels, _ = ndimage.label(bright, structure=np.ones((3, 3)))
    large = np.bincount(labels.ravel()) >= SMALLEST_MARK
    large[0] = False
    return large[labels]


def _crossings(grey_HW: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return the thin strokes along rows and columns that touch one of the other kind, as in crosses and letters.

    A bright layer or a speckle may look like a stroke; both kinds in one place are drawn. Of 160 simulated images (as
    JPEG and PNG) words were found in 97 % at 512 pixels and 92 % at 256, callipers in all; in 0 and 3 % of images
    without any something was.
    """
    across, down = _strokes_across(grey_HW), _strokes_across(grey_HW.T).T
    labels, count = ndimage.label(ndimage.binary_dilation(across | down))
    if count == 0:
        return across
    numbers = np.arange(count + 1)
    is_drawn = (ndimage.maximum(across, labels, numbers) > 0) & (ndimage.maximum(down, labels, numbers) > 0)
    is_drawn[0] = False
    return is_drawn[labels] & (across | down)


def _strokes_across(grey_HW: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return the straight thin strokes of one grey level that run along a row."""
    padded = np.pad(grey_HW, ((2, 2), (0, 0)), mode="edge")
    is_stroke = (grey_HW - padded[:-4] >= STEEP) & (grey_HW - padded[4:] >= STEEP)
    is_stroke[:, 1:] &= np.abs(np.diff(grey_HW, axis=1)) <= STEADY
    whole = ndimage.binary_closing(is_stroke, structure=np.ones((1, 3), dtype=np.bool_))
    return ndimage.binary_opening(whole, structure=np.ones((1, STROKE), dtype=np.bool_))
