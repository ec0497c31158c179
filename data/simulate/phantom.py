"""What a preset hands to the scanner: tissue, labels, and the words and facts that describe them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.simulate.acoustics import Scene, Settings
from data.simulate.geometry import BeamGrid


@dataclass(frozen=True)
class Phantom:
    """One anatomy with its labels, ready to be imaged."""

    grid: BeamGrid
    scene: Scene
    settings: Settings
    class_ids: NDArray[np.uint8]  # [num_ranges, num_beams]
    label: str
    prompt: str
    facts: dict[str, float | str]
