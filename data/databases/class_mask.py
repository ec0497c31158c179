"""Masks that say their classes by transparency or colour, as PNG files of class numbers."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.databases.derived import Derived, derived_png
from data.errors import DataError
from data.images import decode

# In RGB distance. So far from every colour of a legend is a pixel that JPEG or smoothing has blended, or no mask.
FAR = 128
# The share of such pixels that a mask may have: outlines are thin.
MAX_FAR = 0.02

Classify = Callable[[Image.Image], NDArray[np.uint8]]


def class_mask(path: Path, source: Path, classify: Classify) -> Derived:
    """Return the PNG at `path` of the class numbers [H, W] that `classify` finds in the mask file `source`.

    It has a fault if `source` cannot be decoded, or is no mask of this kind.
    """

    def make() -> NDArray[np.uint8]:
        picture, _ = decode(source)
        try:
            return classify(picture)
        except DataError as error:
            raise DataError(f"{source} {error}") from error

    return derived_png(path, [source], make)


def from_alpha(picture: Image.Image) -> NDArray[np.uint8]:
    """Return 1 where a mask is opaque, 0 where it is transparent. Raises: DataError if it is opaque everywhere."""
    opaque = np.asarray(picture.convert("RGBA"))[..., 3] >= 128
    if opaque.all():
        raise DataError("has no transparent pixel; needed a mask in its alpha channel: unpack the download again")
    return opaque.astype(np.uint8)


def from_colours(legend: Mapping[tuple[int, int, int], int]) -> Classify:
    """Return what gives each pixel of a mask the class of the nearest RGB colour in `legend`; black is 0.

    It tolerates the noise of JPEG and smoothed outlines. Raises: DataError if many pixels are far from all colours.
    """
    colours = np.array([(0, 0, 0), *legend], dtype=np.float32)
    classes = np.array([0, *legend.values()], dtype=np.uint8)

    def classify(picture: Image.Image) -> NDArray[np.uint8]:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
        distances = np.stack([np.linalg.norm(pixels - colour, axis=-1) for colour in colours])
        far = distances.min(axis=0) > FAR
        if far.mean() > MAX_FAR:
            strange = tuple(int(channel) for channel in pixels[far][0])
            known = ", ".join(str(colour) for colour in ((0, 0, 0), *legend))
            raise DataError(f"has pixels of the colour {strange}, needed those near {known}: is it a mask?")
        return classes[distances.argmin(axis=0)]

    return classify


def from_painted(picture: Image.Image) -> NDArray[np.uint8]:
    """Return 1 where a mask is painted in any colour, 0 where it is black, or of palette index 0."""
    if len(picture.getbands()) == 1:
        return (np.asarray(picture) != 0).astype(np.uint8)
    return (np.asarray(picture.convert("RGB")).max(axis=-1) >= 32).astype(np.uint8)
