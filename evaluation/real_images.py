"""The real images of a run, training and held out, as the VAE sees them."""

# N images, H W height and width in pixels

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.encode import EncodeConfig
from data.manifest import ManifestRow
from data.preprocessing import picture_of
from evaluation.evenly import evenly


@dataclass(frozen=True)
class RealImages:
    """images_NHW: uint8, grey. rows: of the manifest."""

    images_NHW: NDArray[np.uint8]
    rows: tuple[ManifestRow, ...]

    @classmethod
    def read(
        cls, rows: Sequence[ManifestRow], config: EncodeConfig, resolution: int, max_images: int | None = None
    ) -> Self:
        """Return the images of rows. max_images: spread evenly over them; None: all."""
        chosen = [rows[place] for place in evenly(len(rows) if max_images is None else max_images, len(rows))]
        found = np.empty((len(chosen), resolution, resolution), np.uint8)
        for place, row in enumerate(chosen):
            found[place] = np.asarray(picture_of(row, resolution, config.resize).convert("L"))
        return cls(found, tuple(chosen))

    def where(self, wanted: Callable[[ManifestRow], bool]) -> Self:
        """Return those whose row is wanted."""
        places = [place for place, row in enumerate(self.rows) if wanted(row)]
        return type(self)(self.images_NHW[places], tuple(self.rows[place] for place in places))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def clusters(self) -> tuple[str, ...]:
        """Images of one patient, and copies, have the same one."""
        return tuple(row.cluster for row in self.rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each."""
        return tuple(row.label for row in self.rows)
