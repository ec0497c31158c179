"""PNG files made from what a database has, so that frames, volumes and outlines are images and masks like others."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.durable import replacing


def derived_png(path: Path, sources: Sequence[Path], make: Callable[[], NDArray[np.uint8]]) -> Path:
    """Return `path`, a PNG of the array [H, W] or [H, W, 3] that `make` returns; made anew if a source is newer."""
    from PIL import Image

    if not path.is_file() or path.stat().st_mtime_ns < max(source.stat().st_mtime_ns for source in sources):
        with replacing(path) as temporary:
            Image.fromarray(make()).save(temporary, format="PNG")
    return path
