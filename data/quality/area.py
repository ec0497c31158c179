"""Where in a picture the scanner's image is: a sector or a rectangle, without the black and the text beside it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from data.databases.outline import fill_outline

# The area is found on a picture of at most this many pixels a side: its border matters, not its speckle.
LONGEST_SIDE = 256
# Grey levels that JPEG's noise and a screen's black stay below, once speckle is averaged.
BLACK = 6.0
# Speckle is averaged over so many pixels to each side.
REACH = 2
# A region counts from this share of the picture on: less is text or a logo.
SMALLEST_REGION_SHARE = 0.02

# left, top, right and bottom in pixels, right and bottom exclusive
Box = tuple[int, int, int, int]


def image_area(grey_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where the scanner's image is, [H, W]: the convex hull of all large bright regions; all, if there is none.

    The hull takes in shadows, which part a sector down to its bottom.
    """
    height, width = grey_HW.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(grey_HW).resize(size, Image.Resampling.BOX), dtype=np.float32)
    # Averaging moves a bright border outwards by its reach; the erosion moves it back.
    is_bright = np.pad(ndimage.uniform_filter(small, size=2 * REACH + 1) > BLACK, REACH, mode="edge")
    eroded = ndimage.binary_erosion(is_bright, structure=np.ones((2 * REACH + 1,) * 2, dtype=np.bool_))
    labels, _ = ndimage.label(eroded[REACH:-REACH, REACH:-REACH])
    num_pixels = np.bincount(labels.ravel())
    num_pixels[0] = 0
    large = np.flatnonzero(num_pixels >= SMALLEST_REGION_SHARE * labels.size)
    if large.size == 0:
        return np.ones_like(grey_HW, dtype=np.bool_)
    hull = Image.fromarray(fill_outline(np.isin(labels, large)))
    return np.asarray(hull.resize((width, height), Image.Resampling.NEAREST), dtype=np.bool_)


def bounding_box(area_HW: NDArray[np.bool_]) -> Box:
    """Return the smallest box that holds an area which is not empty."""
    rows, columns = np.flatnonzero(area_HW.any(axis=1)), np.flatnonzero(area_HW.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def share_outside(mask_HW: NDArray[np.bool_], area_HW: NDArray[np.bool_]) -> float:
    """Return the share of a mask's pixels that lie outside an area; 0 for an empty mask."""
    return float((mask_HW & ~area_HW).sum() / max(1, mask_HW.sum()))
