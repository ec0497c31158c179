"""The area within convex shapes of which only some pixels are known."""

import numpy as np
from numpy.typing import NDArray

from data.databases.polygon import fill_polygons


def fill_outline(drawn: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return 1 within the convex hull of the drawn pixels and 0 elsewhere, [H, W] uint8.

    So an outline may have gaps, or be cut off by the picture's border. Pixels on one line enclose only themselves.
    """
    from scipy.spatial import ConvexHull, QhullError

    # The ends of the rows have the same hull as all pixels, which may be hundreds of thousands.
    rows = np.flatnonzero(drawn.any(axis=1))
    left, right = drawn[rows].argmax(axis=1), drawn.shape[1] - 1 - drawn[rows, ::-1].argmax(axis=1)
    points = np.stack((np.concatenate((left, right)), np.concatenate((rows, rows))), axis=1)
    try:
        corners = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):
        return drawn.astype(np.uint8)
    return fill_polygons([[(x, y) for x, y in corners.tolist()]], drawn.shape[1], drawn.shape[0])
