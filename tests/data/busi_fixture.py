"""Simulated images in BUSI's real layout: sizes that vary, RGB, masks of several modes, several masks an image."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.databases.busi import LABELS
from data.simulate import Simulated, simulate


def write_busi(parent: Path, num_per_label: int = 6, seed: int = 0) -> Path:
    """Write images 1 to `num_per_label` of each class and return `Dataset_BUSI_with_GT` under `parent`."""
    root = parent / "Dataset_BUSI_with_GT"
    counts = dict.fromkeys(LABELS, 0)
    index = 0
    while min(counts.values()) < num_per_label:
        made = simulate("breast", seed, index, 96)
        index += 1
        if counts[made.label] < num_per_label:
            counts[made.label] += 1
            _write_image(root / made.label, made, counts[made.label])
    return root


def _write_image(folder: Path, made: Simulated, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # No two of a class have the same size; wider than high and higher than wide both occur.
    height, width = 96 - number % 5, 64 + 7 * number % 32
    rows, columns = slice(0, height), slice((96 - width) // 2, (96 - width) // 2 + width)
    Image.fromarray(made.image[rows, columns]).convert("RGB").save(folder / f"{made.label} ({number}).png")
    masks = [255 * (made.mask[rows, columns] > 0).astype(np.uint8)]
    if number % 3 == 0 and masks[0].any():
        left = np.zeros_like(masks[0])
        middle = int(np.flatnonzero(masks[0].any(axis=0)).mean())
        left[:, :middle] = masks[0][:, :middle]
        masks = [left, masks[0] - left]
    for place, mask in enumerate(masks):
        suffix = f"_{place}" if place else ""
        # The real masks are of mode 1, L and RGB.
        picture = Image.fromarray(mask).convert(("1", "L", "RGB")[number % 3])
        picture.save(folder / f"{made.label} ({number})_mask{suffix}.png")
