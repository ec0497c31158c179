"""Pictures that are like no other."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_noise(path: Path, seed: int, side: int = 16) -> None:
    """Write a grey picture of noise, `side` pixels square."""
    grey = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(grey).save(path)
