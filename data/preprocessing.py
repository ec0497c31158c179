"""Images and masks at training resolution: what the VAE sees of a row, and what stands in its hint."""

from collections.abc import Sequence
from typing import Literal

from PIL import Image, ImageOps

from data.images import class_numbers, decode
from data.manifest import ManifestRow

Resize = Literal["pad", "crop", "stretch"]


def picture_of(row: ManifestRow, resolution: int, resize: Resize) -> Image.Image:
    """Return the image at training resolution, RGB. Raises: DataError if its file is gone, or another one."""
    return resized(decode(row.image, row.sha256)[0].crop(row.crop).convert("RGB"), resolution, resize)


def hint_of(row: ManifestRow, palette: Sequence[str], resolution: int, resize: Resize) -> Image.Image:
    """Return the mask at training resolution as class numbers; background where the database has no mask."""
    if not row.masks:
        return Image.new("L", (resolution, resolution))
    masks = [decode(path, sha256)[0] for path, sha256 in zip(row.masks, row.masks_sha256, strict=True)]
    numbers = class_numbers(masks, row.mask_classes, palette)
    return resized(Image.fromarray(numbers).crop(row.crop), resolution, resize, Image.Resampling.NEAREST)


def resized(
    picture: Image.Image, resolution: int, resize: Resize, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Return a picture as a square of `resolution` pixels, never turned or flipped; borders are 0."""
    size = (resolution, resolution)
    if resize == "pad":
        return ImageOps.pad(picture, size, method=resample)
    return ImageOps.fit(picture, size, method=resample) if resize == "crop" else picture.resize(size, resample)
