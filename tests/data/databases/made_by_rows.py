"""What a row's files hold, and when the files of a workspace were made."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.databases import Row
from data.images import class_numbers, decode


def picture_of(row: Row) -> NDArray[np.uint8]:
    """Return a row's image as grey values, [H, W]."""
    return np.asarray(decode(row.image)[0].convert("L"))


def mask_of(row: Row) -> NDArray[np.uint8]:
    """Return a row's mask, [H, W]: its classes are numbered in their order from 1."""
    return class_numbers([decode(path)[0] for path in row.masks], row.mask_classes, ["", *row.mask_classes.values()])


def times(workspace: Path) -> dict[Path, int]:
    """Return the times of change of all pictures of a workspace."""
    return {path: path.stat().st_mtime_ns for path in workspace.rglob("*.png")}


def faults_of(rows: Iterable[Row]) -> dict[str, str]:
    """Return why images cannot be used, by id."""
    return {row.id: row.fault for row in rows if row.fault is not None}
