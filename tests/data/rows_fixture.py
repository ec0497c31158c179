"""A manifest of any number of rows that share one small image."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from data.manifest import PALETTE, Manifest, ManifestRow


def write_rows(folder: Path, count: int, num_prompts: int | None = None) -> Path:
    """Write a manifest of `count` rows, a tenth for validation; return its path.

    num_prompts: distinct prompts. None: each row has one of its own.
    """
    image = folder / "image.png"
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(image)
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
    rows = [
        ManifestRow(
            id=f"sim/{number:06d}",
            database="sim",
            image=image,
            sha256=sha256,
            masks_sha256=(),
            width=16,
            height=16,
            organ="breast",
            prompts=(f"Ultrasound image number {number % (num_prompts or count)}",),
            label="benign",
            licence="CC0-1.0",
            split="validation" if number % 10 == 0 else "train",
            patient=f"p{number // 3}",
            cluster=f"sim/{number // 3 * 3:06d}",
        )
        for number in range(count)
    ]
    Manifest(tuple(rows), PALETTE).write(folder / "manifest.parquet")
    return folder / "manifest.parquet"
