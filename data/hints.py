"""ControlNet's hint: class numbers of a mask, one palette over all databases, and the colours that stand for them."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

# B samples, H W image height and width in pixels

# Red, green and blue of each class number, far apart for a network as for an eye; background is black.
CLASS_COLOURS = (
    *((0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180)),
    *((70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255), (170, 110, 40)),
    *((255, 250, 200), (128, 0, 0)),
)
# The class number of a hint that says nothing: of an image without a mask, or dropped. It is grey, since a black hint
# says that there is background alone.
NO_HINT = 255
NO_HINT_COLOUR = (128, 128, 128)
# Of further classes, which databases of your own may bring: colours out of these levels.
STEPS = (0, 51, 102, 153, 204, 229, 255)


def _levels() -> NDArray[np.uint8]:
    """Return the colour of every number, [256, 3]: after the named ones always that farthest from all before it."""
    candidates = np.array(list(product(STEPS, repeat=3)), dtype=np.int64)
    levels = [np.array(colour) for colour in (NO_HINT_COLOUR, *CLASS_COLOURS)]
    nearest = np.min([((candidates - level) ** 2).sum(axis=1) for level in levels], axis=0)
    while len(levels) < 256:
        levels.append(candidates[nearest.argmax()])
        nearest = np.minimum(nearest, ((candidates - levels[-1]) ** 2).sum(axis=1))
    return np.array([*levels[1:], NO_HINT_COLOUR], dtype=np.uint8)


LEVELS = _levels()


def coloured(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colours of class numbers, [..., 3]."""
    return LEVELS[numbers]


def hint_images(numbers_BHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return hints as ControlNet takes them, [B, 3, H, W] in [0, 1]: what diffusers makes of a coloured picture."""
    return np.moveaxis(LEVELS.astype(np.float32)[numbers_BHW] / np.float32(255), -1, 1)


def hint_colours(palette: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return the colour of each class by its name, and that of a hint which says nothing as "no hint"."""
    colours = {name: tuple(coloured(np.array(number)).tolist()) for number, name in enumerate(palette)}
    return {**colours, "no hint": NO_HINT_COLOUR}
