"""Images with their masks at training resolution, as the VAE and the ControlNet see them."""

# N images, H W height and width in pixels

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.encode import EncodeConfig
from data.errors import DataError
from data.manifest import ManifestRow
from data.preprocessing import hint_of, picture_of


@dataclass(frozen=True)
class MaskedImages:
    """Images and the masks that they have, or that they should follow.

    images_NHW: uint8, grey. class_numbers_NHW: uint8, places in the manifest's palette; 0 is background. ids: of the
    manifest's rows. clusters: images of one patient, and copies, have the same one.
    """

    images_NHW: NDArray[np.uint8]
    class_numbers_NHW: NDArray[np.uint8]
    ids: tuple[str, ...]
    clusters: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images_NHW.shape != self.class_numbers_NHW.shape:
            raise DataError(
                f"images have shape {self.images_NHW.shape}, needed that of their masks, {self.class_numbers_NHW.shape}"
            )
        assert len(self.images_NHW) == len(self.ids) == len(self.clusters)

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, places: NDArray[np.int64]) -> Self:
        """Return those at some places."""
        ids, clusters = (tuple(of[place] for place in places) for of in (self.ids, self.clusters))
        return type(self)(self.images_NHW[places], self.class_numbers_NHW[places], ids, clusters)

    def redrawn(self, images: NDArray[np.uint8]) -> Self:
        """Return other images of the same masks: what was generated from them, uint8, [N, H, W] or [N, H, W, 3]."""
        return replace(self, images_NHW=grey(images))


def grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images [N, H, W] or [N, H, W, 3] as luma, [N, H, W]: Pillow's, which is that of ITU-R BT.601."""
    if images.ndim == 3:
        return images
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])


def read_rows(
    rows: Sequence[ManifestRow], palette: Sequence[str], config: EncodeConfig, resolution: int
) -> MaskedImages:
    """Return the images and masks of rows of a manifest, as `encode` would resize them.

    palette: the manifest's. Raises: DataError if a file is not as it was.
    """
    return MaskedImages(
        np.stack([np.asarray(picture_of(row, resolution, config.resize).convert("L")) for row in rows]),
        np.stack([np.asarray(hint_of(row, palette, resolution, config.resize)) for row in rows]),
        tuple(row.id for row in rows),
        tuple(row.cluster for row in rows),
    )
