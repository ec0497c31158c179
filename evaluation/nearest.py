"""The nearest training image of each image, seen as it is or mirrored, and how near it is for what lies around it."""

# N images, T training images, D numbers of each

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Of the training images of other patients nearest to an image: what "near" is there.
NUM_AROUND = 20
# Images are compared at this size: speckle, which a copy need not share, is gone, and every organ still told apart.
THUMBNAIL_PIXELS = 32
AT_ONCE = 256


@dataclass(frozen=True)
class Nearest:
    """Of each of N images. places: of the nearest training image. is_mirrored: whether its mirror image is the nearest.

    distances: to it. ratios: the same over the mean distance to the `NUM_AROUND` nearest of other patients. A smooth
    image is near to all others, and a copy of a smooth one only to its own: about 1 is ordinary, 0 a copy.
    """

    places: NDArray[np.int64]
    is_mirrored: NDArray[np.bool_]
    distances: NDArray[np.float64]
    ratios: NDArray[np.float64]


def thumbnails(images_NHW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return images made small, less their mean and of length 1, [N, D]: gain and offset do not count."""
    size = (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), np.float64) for image in images_NHW]
    found_ND = np.array(small).reshape(len(images_NHW), THUMBNAIL_PIXELS**2)
    found_ND -= found_ND.mean(1, keepdims=True)
    length = np.linalg.norm(found_ND, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = found_ND / np.where(length > 0, length, 1)
    return scaled


def nearest(
    of_ND: NDArray[np.float64],
    mirrored_ND: NDArray[np.float64],
    training_TD: NDArray[np.float64],
    training_clusters: Sequence[str],
) -> Nearest:
    """Return the nearest training images of images and of their mirror images, by what was made of all three.

    The distance is Euclidean: of thumbnails sqrt(2 - 2 r), where r is the normalised correlation. Its ratio to the
    distances around is that of Carlini et al. 2023 (arXiv:2301.13188), section 4.2, there with 50 of them. There
    must be two training patients.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    _, cluster_T = np.unique(np.asarray(training_clusters), return_inverse=True)
    places, mirrored, distances, ratios = [], [], [], []
    for start in range(0, len(of_ND), AT_ONCE):
        both_2NT = np.stack(
            [euclidean_distances(each[start : start + AT_ONCE], training_TD) for each in (of_ND, mirrored_ND)]
        )
        least_NT = both_2NT.min(0)
        place_N = least_NT.argmin(1)
        rows = np.arange(len(place_N))
        others_NT = np.where(cluster_T == cluster_T[place_N][:, None], np.inf, least_NT)
        around_NK = np.sort(others_NT, axis=1)[:, :NUM_AROUND]
        finite = np.isfinite(around_NK)
        around_N = np.where(finite, around_NK, 0).sum(1) / finite.sum(1)
        places.append(place_N)
        mirrored.append(both_2NT[:, rows, place_N].argmin(0) == 1)
        distances.append(least_NT[rows, place_N])
        ratios.append(distances[-1] / np.where(around_N > 0, around_N, 1))
    return Nearest(*(np.concatenate(each) for each in (places, mirrored, distances, ratios)))
