"""What one look at a picture and its masks tells of their quality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from data.quality.area import Box, bounding_box, image_area, share_outside
from data.quality.likeness import Likeness
from data.quality.overlays import MARGIN_SHARE, Overlays, find_overlays


@dataclass(frozen=True)
class Look:
    """What is found in a picture by itself.

    area: box of the scanner's image. whole, inner: hashes of the picture and of that box, since copies are often
    cropped to it. mask_share: of the pixels; None without a mask. outside_share: of the mask, beside the image.
    """

    area: Box
    whole: Likeness
    inner: Likeness
    overlays: Overlays
    mask_share: float | None
    outside_share: float

    @property
    def likeness(self) -> str:
        """The hashes of the whole and of the inner picture as text."""
        return f"{self.whole.text}{self.inner.text}"


def look_at(picture: Image.Image, masks: Sequence[NDArray[np.bool_]]) -> Look:
    """Return what a picture and its masks [H, W] show."""
    rgb_HWC = np.asarray(picture.convert("RGB"))
    grey = picture.convert("RGB").convert("L")
    grey_HW = np.asarray(grey)
    area_HW = image_area(grey_HW)
    box = bounding_box(area_HW)
    mask_share, outside_share = None, 0.0
    if masks:
        mask_HW = np.logical_or.reduce(masks)
        reach = 2 * max(2, round(MARGIN_SHARE * max(mask_HW.shape))) + 1
        mask_share = float(mask_HW.mean())
        outside_share = share_outside(mask_HW, ndimage.maximum_filter(area_HW, size=reach))
    return Look(
        area=box,
        whole=Likeness.of(grey),
        inner=Likeness.of(grey.crop(box)),
        overlays=find_overlays(rgb_HWC, grey_HW, area_HW),
        mask_share=mask_share,
        outside_share=outside_share,
    )
