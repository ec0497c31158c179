"""Where in a picture the scanner's image is: a sector or a rectangle, without the black and the text beside it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from data.databases.outline import fill_outline

# The area is found on a picture of at most this many pixels a side: its border matters, not its speckle.
LONGEST_SIDE = 256
# Grey levels that JPEG's noise and a screen's black stay below.
BLACK = 6
# Tissue is lit but for the darkest of its speckle; of a block of text three quarters of the pixels are black.
LIT_SHARE = 0.3
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
    lit = Image.fromarray(np.where(grey_HW > BLACK, 255, 0).astype(np.uint8))
    small = np.asarray(lit.resize(size, Image.Resampling.BOX), dtype=np.float32) / 255
    # One pixel beyond a border two of five are lit, which is more than the share: the erosion takes it away again.
    is_dense = np.pad(ndimage.uniform_filter(small, size=5) > LIT_SHARE, 1, mode="edge")
    labels, _ = ndimage.label(ndimage.binary_erosion(is_dense, structure=np.ones((3, 3), dtype=np.bool_))[1:-1, 1:-1])
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
