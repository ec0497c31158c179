"""Masks from polygons."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Of corners (x, y) in pixels.
Polygon = Sequence[tuple[float, float]]


def fill_polygons(polygons: Iterable[Polygon], width: int, height: int) -> NDArray[np.uint8]:
    """Return 1 within any of the polygons, edges included, and 0 elsewhere, [height, width] uint8.

    What lies outside of the picture is cut off; fewer than three corners enclose nothing.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (width, height))
    for polygon in polygons:
        if len(polygon) >= 3:
            ImageDraw.Draw(canvas).polygon(np.rint(polygon).ravel().tolist(), fill=1)
    return np.array(canvas)


def area(polygon: Polygon) -> float:
    """Return the area that a polygon encloses, square pixels (the shoelace formula)."""
    x, y = np.asarray(polygon, dtype=float).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
