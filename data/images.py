"""Image and mask files as arrays; a file that cannot be read raises a DataError that names it."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.errors import DataError

# The formats of ultrasound databases. Pillow's others are not tried: some of them start external programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
EXIF_ORIENTATION = 0x0112
# A mask with this only value is binary: its pixels from 128 on belong to the class (JPEG blurs 0 and 255).
BINARY = 255


def decode(path: Path, expected_sha256: str | None = None) -> tuple[Image.Image, str]:
    """Return a file's picture, wholly decoded, and the SHA-256 of its bytes.

    Raises: DataError if it is missing, cut off, no image, has more than 8 bits a channel, or another hash.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise DataError(f"{path} has changed since the manifest was made: run `sonoshard prepare` again")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            picture.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on broken files
        reason = "no PNG, JPEG, BMP or TIFF" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path} cannot be decoded: {reason}") from error
    if picture.getexif().get(EXIF_ORIENTATION, 1) != 1:
        raise DataError(f"{path} is to be turned by its EXIF orientation, its mask is not: save it upright without")
    if picture.mode.startswith(("I", "F")):
        raise DataError(f"{path} has pixels of mode {picture.mode}, needed 8 bits a channel: convert it")
    return picture, sha256


def mask_values(picture: Image.Image, classes: Mapping[int, str]) -> NDArray[np.uint8]:
    """Return a mask's values, [H, W]: palette indices or grey levels; 0 and 255 only if it is binary."""
    if picture.mode != "P" or set(classes) == {BINARY}:
        picture = picture.convert("L")
    values = np.asarray(picture, dtype=np.uint8)
    return np.where(values >= 128, BINARY, 0).astype(np.uint8) if set(classes) == {BINARY} else values


def class_numbers(
    masks: Sequence[Image.Image], classes: Mapping[int, str], palette: Sequence[str]
) -> NDArray[np.uint8]:
    """Return the union of masks as class numbers, [H, W]: a class is its place in `palette`, background is 0."""
    layers = [mask_values(mask, classes) for mask in masks]
    numbers = np.zeros_like(layers[0])
    for layer in layers:
        for value, name in classes.items():
            numbers[layer == value] = palette.index(name)
    return numbers
