"""The presets by name, and one simulated picture of a preset."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.simulate import breast, cardiac, fetal
from data.simulate.acoustics import form_image
from data.simulate.geometry import scan_convert

PRESETS: tuple[str, ...] = ("breast", "cardiac", "fetal")
MASK_CLASSES: dict[str, dict[int, str]] = {
    "breast": breast.CLASSES,
    "cardiac": cardiac.CLASSES,
    "fetal": fetal.CLASSES,
}
SMALLEST_SIZE, LARGEST_SIZE = 64, 512


@dataclass(frozen=True)
class Simulated:
    """One simulated picture and what is true of it."""

    image: NDArray[np.uint8]  # [size, size] greyscale
    mask: NDArray[np.uint8]  # [size, size] class ids of MASK_CLASSES, 0 background
    label: str
    prompt: str  # begins with "simulated"
    facts: dict[str, float | str]  # what was drawn


def _check(preset: str, seed: int, index: int, size: int, scanner: str) -> None:
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is not simulated; there are {', '.join(PRESETS)}")
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise ValueError(f"size={size} pixels is out of range; needed: {SMALLEST_SIZE} to {LARGEST_SIZE}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed={seed}, index={index}: both must be 0 or more")
    scanners = breast.SCANNERS if preset == "breast" else breast.SCANNERS[:1]
    if scanner not in scanners:
        raise ValueError(f"scanner={scanner!r} does not exist for preset={preset!r}; there is {' and '.join(scanners)}")


def simulate(preset: str, seed: int, index: int, size: int = 256, *, scanner: str = "linear") -> Simulated:
    """Return picture `index` of a preset, [size, size] uint8, with its mask, label, prompt and facts.

    The same arguments give the same picture to the bit on one machine. The anatomy depends on all but `size`; the
    speckle on `size` too. `scanner` is "linear", or for breast "trapezoid", another vendor's format.
    Raises: ValueError for an unknown preset or scanner, a size outside 64..512, a negative seed or index.
    """
    _check(preset, seed, index, size, scanner)
    rng = np.random.default_rng((seed, PRESETS.index(preset), breast.SCANNERS.index(scanner), index))
    if preset == "breast":
        phantom = breast.draw(rng, size, scanner)
    else:
        phantom = (cardiac if preset == "cardiac" else fetal).draw(rng, size)
    grey = form_image(rng, phantom.grid, phantom.scene, phantom.settings)
    picture, mask = scan_convert(phantom.grid, grey, phantom.class_ids, size)
    facts: dict[str, float | str] = {
        "scanner": scanner,
        "depth_mm": round(phantom.grid.geometry.depth_mm, 1),
        "frequency_mhz": round(phantom.settings.frequency_mhz, 2),
        "dynamic_range_db": round(phantom.settings.dynamic_range_db, 1),
        "looks": phantom.settings.looks,
    }
    return Simulated(
        np.rint(255 * picture).astype(np.uint8), mask, phantom.label, phantom.prompt, facts | phantom.facts
    )
