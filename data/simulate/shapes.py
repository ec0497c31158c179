"""Outlines in the picture plane: ellipses, thin curves, and soft steps between tissues."""

import numpy as np
from numpy.typing import NDArray

from data.simulate.geometry import BeamGrid, Float


def soft_step(level: Float, width: float) -> Float:
    """Return 0 below 0, 1 above `width` and a ramp between."""
    return np.clip(level * np.float32(1 / width), 0, 1)


def blend(outside: Float, inside: Float | np.floating | float, weight: Float) -> Float:
    """Return `inside` where `weight` is 1, `outside` where it is 0."""
    return outside + (inside - outside) * weight


def rotated(grid: BeamGrid, centre_mm: tuple[float, float], tilt_rad: float) -> tuple[Float, Float]:
    """Return every sample's place in a frame at `centre_mm`, turned clockwise on the screen, in mm: (right, down)."""
    x_mm, z_mm = grid.points_mm
    dx, dz = x_mm - np.float32(centre_mm[0]), z_mm - np.float32(centre_mm[1])
    cosine, sine = np.float32(np.cos(tilt_rad)), np.float32(np.sin(tilt_rad))
    return cosine * dx + sine * dz, cosine * dz - sine * dx


def ellipse(across: Float, down: Float, centre: tuple[float, float], semi_axes: tuple[float, float]) -> Float:
    """Return the normalised radius: below 1 inside the ellipse, 1 on it."""
    across = (across - centre[0]) * np.float32(1 / semi_axes[0])
    down = (down - centre[1]) * np.float32(1 / semi_axes[1])
    return np.sqrt(across * across + down * down)


def distance_mm(grid: BeamGrid, level: Float) -> Float:
    """Return about the signed distance to the zero of `level`, in mm; exact near it, [num_ranges, num_beams]."""
    return level / grid.slopes(level)[1]


def curve(across: Float, down: Float, points: NDArray[np.float64], width: float) -> Float:
    """Return 1 on a curve through `points` [n, 2], falling off as a Gaussian of scale `width`."""
    reach = 3 * width
    low, high = points.min(0) - reach, points.max(0) + reach
    near = np.flatnonzero((across > low[0]) & (across < high[0]) & (down > low[1]) & (down < high[1]))
    profile = np.zeros(across.shape, np.float32)
    here = np.stack((across.ravel()[near], down.ravel()[near]), 1)
    squared = np.full(len(near), np.inf, np.float32)
    for start, end in zip(points[:-1].astype(np.float32), points[1:].astype(np.float32), strict=True):
        step = end - start
        along = np.clip((here - start) @ step / (step @ step + np.float32(1e-9)), 0, 1)
        squared = np.minimum(squared, ((here - start - along[:, None] * step) ** 2).sum(1))
    profile.ravel()[near] = np.exp(-squared / np.float32(width**2))
    return profile


def bend(start: tuple[float, float], middle: tuple[float, float], end: tuple[float, float]) -> NDArray[np.float64]:
    """Return nine points of the quadratic Bézier curve between two points, [9, 2]."""
    t = np.linspace(0, 1, 9)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(middle) + t**2 * np.array(end)
