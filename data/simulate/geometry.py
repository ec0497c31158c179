"""Where the beams of a probe run, and the picture that a scanner draws from them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

# float32 at run time: numpy's stubs lose the width in mixed arithmetic.
Float = NDArray[np.floating]


@dataclass(frozen=True)
class FlatArray:
    """A linear probe; with a steering angle above 0, its trapezoid ("virtual convex") format.

    The picture fills the square: millimetres across and down may differ in pixels, as in resized databases.
    """

    half_width_mm: float
    half_angle_rad: float
    depth_mm: float

    @property
    def width_mm(self) -> float:
        """Return the lateral extent at half depth."""
        return 2 * (self.half_width_mm + 0.5 * self.depth_mm * float(np.tan(self.half_angle_rad)))

    @property
    def window_mm(self) -> tuple[float, float, float]:
        """Return what the picture shows: half its width, its top and its bottom."""
        return self.half_width_mm + self.depth_mm * float(np.sin(self.half_angle_rad)), 0.0, self.depth_mm

    def points(self, range_mm: Float, beam: Float) -> tuple[Float, Float]:
        """Return (x, z) in mm of a distance along the beams; `beam` runs from -1 to 1."""
        tangent = beam * np.tan(self.half_angle_rad)
        cosine = 1 / np.sqrt(1 + tangent**2)
        return beam * self.half_width_mm + range_mm * tangent * cosine, range_mm * cosine

    def beams(self, x_mm: Float, z_mm: Float) -> tuple[Float, Float]:
        """Return (range in mm, beam from -1 to 1) of points: the inverse of `points`."""
        beam = x_mm / (self.half_width_mm + np.maximum(z_mm, 0) * np.tan(self.half_angle_rad))
        return z_mm * np.sqrt(1 + (beam * np.tan(self.half_angle_rad)) ** 2), beam

    def pitch_mm(self, range_mm: Float, num_beams: int) -> Float:
        """Return the distance between neighbouring beams, [num_ranges] in mm."""
        return 2 * (self.half_width_mm + range_mm * np.tan(self.half_angle_rad)) / num_beams


@dataclass(frozen=True)
class CurvedArray:
    """A convex probe; with a radius of a few millimetres, a phased array's sector.

    The picture keeps its proportions; `crop` is the part of the sector's width that it shows.
    """

    radius_mm: float
    half_angle_rad: float
    depth_mm: float
    crop: float = 1.0

    @property
    def width_mm(self) -> float:
        """Return the lateral extent at half depth."""
        return 2 * self.half_angle_rad * (self.radius_mm + 0.5 * self.depth_mm)

    @property
    def window_mm(self) -> tuple[float, float, float]:
        """Return what the picture shows: half its width, its top and its bottom."""
        half = self.crop * (self.radius_mm + self.depth_mm) * float(np.sin(self.half_angle_rad))
        top = self.radius_mm * (float(np.cos(self.half_angle_rad)) - 1)
        half = max(half, (self.depth_mm - top) / 2)
        return half, top - (2 * half - (self.depth_mm - top)) / 2, top + half + (self.depth_mm - top) / 2

    def points(self, range_mm: Float, beam: Float) -> tuple[Float, Float]:
        """Return (x, z) in mm of a distance along the beams; `beam` runs from -1 to 1."""
        radius, angle = range_mm + self.radius_mm, beam * self.half_angle_rad
        return radius * np.sin(angle), radius * np.cos(angle) - self.radius_mm

    def beams(self, x_mm: Float, z_mm: Float) -> tuple[Float, Float]:
        """Return (range in mm, beam from -1 to 1) of points: the inverse of `points`."""
        below_apex = z_mm + self.radius_mm
        return np.hypot(x_mm, below_apex) - self.radius_mm, np.arctan2(x_mm, below_apex) / self.half_angle_rad

    def pitch_mm(self, range_mm: Float, num_beams: int) -> Float:
        """Return the distance between neighbouring beams, [num_ranges] in mm."""
        return 2 * self.half_angle_rad * (range_mm + self.radius_mm) / num_beams


Geometry = FlatArray | CurvedArray


@dataclass(frozen=True)
class BeamGrid:
    """The samples at which a scene is described and imaged: rows are ranges, columns are beams."""

    geometry: Geometry
    num_ranges: int
    num_beams: int

    @classmethod
    def for_picture(cls, geometry: Geometry, size: int) -> "BeamGrid":
        """Return a grid somewhat finer than a picture of `size` x `size` pixels.

        The pulse is shorter than the beam is wide, so ranges are sampled 1.4 times as often. The 32 extra beams give
        small pictures, whose pixels are wider than a speckle, relatively more.
        """
        return cls(geometry, num_ranges=round(1.4 * (size + 32)), num_beams=size + 32)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (num_ranges, num_beams)."""
        return self.num_ranges, self.num_beams

    @cached_property
    def range_mm(self) -> Float:
        """Return the distance along the beam of every row, [num_ranges]."""
        return ((np.arange(self.num_ranges, dtype=np.float32) + 0.5) * self.range_step_mm).astype(np.float32)

    @property
    def range_step_mm(self) -> float:
        """Return the distance between rows."""
        return self.geometry.depth_mm / self.num_ranges

    @cached_property
    def beam(self) -> Float:
        """Return every beam's place between -1 (left) and 1 (right), [num_beams]."""
        return ((np.arange(self.num_beams) + 0.5) / self.num_beams * 2 - 1).astype(np.float32)

    @cached_property
    def pitch_mm(self) -> Float:
        """Return the distance between neighbouring beams at every row, [num_ranges]."""
        return self.geometry.pitch_mm(self.range_mm, self.num_beams).astype(np.float32)

    @cached_property
    def points_mm(self) -> tuple[Float, Float]:
        """Return x (right) and z (down from the probe's centre) of every sample, each [num_ranges, num_beams]."""
        x_mm, z_mm = self.geometry.points(self.range_mm[:, None], self.beam[None, :])
        return x_mm.astype(np.float32), np.broadcast_to(z_mm, self.shape).astype(np.float32)

    def slopes(self, level: Float) -> tuple[Float, Float]:
        """Return how fast `level` rises along the beams, and at its steepest, per mm, each [num_ranges, num_beams].

        Their ratio is the cosine between the beam and the normal of a surface of equal level.
        """
        along: Float = np.gradient(level, axis=0) * np.float32(1 / self.range_step_mm)
        across: Float = np.gradient(level, axis=1) / self.pitch_mm[:, None]
        # Not np.hypot: four times slower in float32. The added square keeps flat places from a division by 0.
        return along, np.sqrt(along * along + across * across + np.float32(1e-8))


def scan_convert(
    grid: BeamGrid, echoes: Float, class_ids: NDArray[np.uint8], size: int
) -> tuple[Float, NDArray[np.uint8]]:
    """Return the picture of beam data and of its labels, both [size, size]; outside the probe's field both are 0."""
    half, top, bottom = grid.geometry.window_mm
    steps = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x_mm, z_mm = np.broadcast_arrays(
        ((2 * steps - 1) * half)[None, :].astype(np.float32), (top + steps * (bottom - top))[:, None].astype(np.float32)
    )
    range_mm, beam = grid.geometry.beams(x_mm, z_mm)
    inside = (range_mm >= 0) & (range_mm <= grid.geometry.depth_mm) & (np.abs(beam) <= 1)
    places = np.stack((range_mm / grid.range_step_mm - 0.5, (beam + 1) * (grid.num_beams / 2) - 0.5))[:, inside]
    picture, labels = np.zeros((size, size), np.float32), np.zeros((size, size), np.uint8)
    picture[inside] = map_coordinates(echoes, places, order=1, mode="nearest")
    rows, columns = np.rint(places).astype(np.intp)
    labels[inside] = class_ids[rows.clip(0, grid.num_ranges - 1), columns.clip(0, grid.num_beams - 1)]
    return picture, labels
