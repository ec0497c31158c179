"""The masks that a ControlNet takes: what their classes are, and one that shows all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.hints import hint_colours
from launch.training_data import Training
from models.errors import ModelError
from models.record import HINT_COLOURS
from sampler.manifest import PaletteClass
from sampler.masks import hint_image
from tools.export.source import Source


def example_mask(num_classes: int, side: int) -> NDArray[np.uint8]:
    """Return a mask of background and a square of each other class, as far as they fit, [side, side] class numbers."""
    mask = np.zeros((side, side), np.uint8)
    per_row = max(1, int(np.ceil(np.sqrt(max(1, num_classes - 1)))))
    cell = side // per_row
    for number in range(1, num_classes):
        row, column = divmod(number - 1, per_row)
        top, left = row * cell + cell // 8, column * cell + cell // 8
        mask[top : top + 3 * cell // 4, left : left + 3 * cell // 4] = number
    return mask


def hints_of(mask: NDArray[np.uint8], palette: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """Return the hint that a mask is in a bundle of this palette, [1, 3, H, W] in [0, 1]."""
    classes = [PaletteClass(one["number"], one["name"], tuple(one["colour"])) for one in palette]
    return hint_image(mask, classes)[None]


def mask_palette(source: Source, training: Training) -> list[dict[str, Any]]:
    """Return number, name and colour of each class that a mask may hold, and whether it was trained; none otherwise.

    A class counts as trained where nobody wrote down which ones were.
    Raises: ModelError if nobody wrote down what the colours of the ControlNet's hints mean.
    """
    if not source.has_controlnet:
        return []
    written = dict((source.record or {}).get(HINT_COLOURS) or {})
    written.pop("no hint", None)
    colours = hint_colours(training.palette) | written
    colours.pop("no hint", None)
    if not colours:
        raise ModelError(
            f"{source.name} has a ControlNet, and no sonoshard.json that says what the colours of its masks mean "
            "(hint_colours); a bundle would not know how to draw a mask: export another form, or write that file"
        )
    shown = [one["mask_classes"] for one in training.databases if "mask_classes" in one]
    trained = set().union(*shown, [next(iter(colours))]) if shown and not training.unrecorded else set(colours)
    return [
        {"number": number, "name": name, "colour": list(colour), "trained": name in trained}
        for number, (name, colour) in enumerate(colours.items())
    ]
