"""Smooth random fields and lines over a beam grid.

They are drawn on nodes fixed in millimetres, so one generator gives one anatomy at every picture size.
"""

import numpy as np

from data.simulate.geometry import BeamGrid, Float


def _spread(places: Float, extent: float, sigma: float) -> Float:
    """Return the weights that carry white noise on nodes one `sigma` apart to `places` in 0..extent, [places, nodes].

    A row's squares sum to 1, so unit noise stays unit noise; at this spacing the nodes cannot be seen (ripple 1e-4).
    """
    nodes = np.arange(-3 * sigma, extent + 3.5 * sigma, sigma)
    weights = np.exp(-0.5 * ((places[:, None] - nodes) / sigma) ** 2)
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)


def _lateral_places(grid: BeamGrid) -> tuple[Float, float]:
    width_mm = grid.geometry.width_mm
    return (grid.beam + 1) * np.float32(width_mm / 2), width_mm


def smooth_field(rng: np.random.Generator, grid: BeamGrid, range_sigma_mm: float, lateral_sigma_mm: float) -> Float:
    """Return white noise blurred by a Gaussian, zero mean and unit variance, [num_ranges, num_beams].

    Across the beams a millimetre is one at half depth: in a sector the texture widens with depth, as echoes do.
    """
    lateral, width_mm = _lateral_places(grid)
    down = _spread(grid.range_mm, grid.geometry.depth_mm, range_sigma_mm)
    across = _spread(lateral, width_mm, lateral_sigma_mm)
    noise = rng.standard_normal((down.shape[1], across.shape[1]), dtype=np.float32)
    return down @ noise @ across.T


def wavy_line(rng: np.random.Generator, grid: BeamGrid, sigma_mm: float) -> Float:
    """Return a smooth random line over the beams, zero mean and unit variance, [num_beams]."""
    lateral, width_mm = _lateral_places(grid)
    across = _spread(lateral, width_mm, sigma_mm)
    return across @ rng.standard_normal(across.shape[1], dtype=np.float32)
