"""Draw the contact sheet of the simulator, docs/simulated.png: the first pictures of fixed seeds, none left out."""

from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from data.simulate import MASK_CLASSES, Simulated, simulate

SEED = 0
NUM_COLUMNS = 8
SIZE = 144
# One row each: the preset, its scanner, the first index.
ROWS = (
    ("breast", "linear", 0),
    ("breast", "linear", 8),
    ("breast", "trapezoid", 0),
    ("cardiac", "linear", 0),
    ("fetal", "linear", 0),
)


def _masks(preset: str, row: list[Simulated]) -> NDArray[np.uint8]:
    """Return the row's masks as grey levels, brighter for a higher class id."""
    level = 255 // max(MASK_CLASSES[preset])
    return np.hstack([simulated.mask for simulated in row]) * np.uint8(level)


def contact_sheet() -> NDArray[np.uint8]:
    """Return all rows stacked, uint8 greyscale; a row of masks follows the last row of each preset."""
    rows = []
    for number, (preset, scanner, first) in enumerate(ROWS):
        row = [simulate(preset, SEED, first + i, SIZE, scanner=scanner) for i in range(NUM_COLUMNS)]
        rows.append(np.hstack([simulated.image for simulated in row]))
        if number + 1 == len(ROWS) or ROWS[number + 1][0] != preset:
            rows.append(_masks(preset, row))
    return np.vstack(rows)


def main(path: Path = Path("docs/simulated.png")) -> None:
    """Write the contact sheet to PATH."""
    Image.fromarray(contact_sheet()).save(path, optimize=True)


if __name__ == "__main__":
    typer.run(main)
