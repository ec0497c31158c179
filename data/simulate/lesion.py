"""Breast lesions put into a scene: cyst, fibroadenoma, malignant mass."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.simulate.acoustics import Scene, interface
from data.simulate.fields import smooth_field
from data.simulate.geometry import BeamGrid, Float
from data.simulate.shapes import blend, rotated, soft_step


@dataclass(frozen=True)
class Lesion:
    """What was drawn, and where it is."""

    inside: NDArray[np.bool_]  # [num_ranges, num_beams]
    subtype: str
    attributes: tuple[str, ...]  # phrases for the prompt, each of them true
    facts: dict[str, float | str]  # sizes and counts


@dataclass(frozen=True)
class Place:
    """The centre and the mean radius of a lesion."""

    centre_mm: tuple[float, float]
    radius_mm: float


def _normalised_radius(
    grid: BeamGrid, place: Place, aspect: float, tilt_rad: float, outline: NDArray[np.float64]
) -> Float:
    """Return the distance from the centre, 1 on the outline, for an ellipse `aspect` times as wide as tall.

    `outline` [n] is the radius relative to the ellipse at n angles that go once around.
    """
    across, down = rotated(grid, place.centre_mm, tilt_rad)
    across = across * np.float32(1 / (place.radius_mm * np.sqrt(aspect)))
    down = down * np.float32(np.sqrt(aspect) / place.radius_mm)
    turns = np.arctan2(down, across) * np.float32(0.5 / np.pi) + 0.5
    return np.hypot(across, down) / outline[(turns * (len(outline) - 1)).astype(np.intp)].astype(np.float32)


def _lobulated(rng: np.random.Generator, orders: range, amplitude: float) -> NDArray[np.float64]:
    angles = np.linspace(-np.pi, np.pi, 2048)
    outline = np.ones_like(angles)
    for order in orders:
        outline += rng.uniform(0.3, 1) * amplitude / np.sqrt(order) * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    return outline


def _spiculated(rng: np.random.Generator, num_spicules: int) -> NDArray[np.float64]:
    angles = np.linspace(-np.pi, np.pi, 2048)
    outline = _lobulated(rng, range(2, 9), 0.16)
    for _ in range(num_spicules):
        turn = np.angle(np.exp(1j * (angles - rng.uniform(-np.pi, np.pi))))
        outline += rng.uniform(0.2, 0.75) * np.exp(-np.abs(turn) / rng.uniform(0.05, 0.12))
    return outline


def _edge_shadows(grid: BeamGrid, place: Place, radius: Float, attenuation_db: float) -> Float:
    """Return the attenuation that stands for refraction at a smooth lesion's sides, dB/cm/MHz."""
    across, down = rotated(grid, place.centre_mm, 0.0)
    half_width = np.abs(across[radius < 1]).max(initial=0.0)
    from_edge = np.abs(np.abs(across) - half_width)
    below = (down > 0) & (down < 3)
    return np.exp(-((from_edge / np.float32(0.45)) ** 2)) * below * np.float32(attenuation_db)


def add_cyst(rng: np.random.Generator, grid: BeamGrid, scene: Scene, place: Place) -> Lesion:
    """Put a cyst into `scene`: no echoes (or debris), a thin wall, little attenuation, hence enhancement behind."""
    has_debris = rng.random() < 0.3
    radius = _normalised_radius(
        grid, place, rng.uniform(1.0, 1.8), np.deg2rad(rng.uniform(-15, 15)), _lobulated(rng, range(2, 4), 0.06)
    )
    level = np.float32(rng.uniform(-37, -31) if has_debris else -70)
    scene.echo_db = blend(scene.echo_db, level + 2 * smooth_field(rng, grid, 0.8, 1.2), soft_step(1 - radius, 0.05))
    inside = radius < 1
    scene.attenuation_db[inside] = 0.05
    scene.attenuation_db += _edge_shadows(grid, place, radius, rng.uniform(0, 0.8))
    scene.specular *= soft_step(radius - 1, 0.1)
    scene.specular += 0.5 * interface(grid, radius - 1, 0.14, 4)
    subtype = "complicated cyst" if has_debris else "cyst"
    return Lesion(inside, subtype, ("posterior enhancement", "thin wall"), {})


def add_fibroadenoma(rng: np.random.Generator, grid: BeamGrid, scene: Scene, place: Place) -> Lesion:
    """Put a fibroadenoma into `scene`: oval, even and darker than gland, a thin capsule, shadows behind its edges."""
    is_lobulated = rng.random() < 0.35
    outline = _lobulated(rng, range(3, 6), 0.2) if is_lobulated else _lobulated(rng, range(2, 4), 0.06)
    aspect, edge_db = rng.uniform(1.3, 2.1), rng.uniform(0.2, 1.8)
    radius = _normalised_radius(grid, place, aspect, np.deg2rad(rng.uniform(-15, 15)), outline)
    level = np.float32(rng.uniform(-26, -18))
    scene.echo_db = blend(scene.echo_db, level + 1.4 * smooth_field(rng, grid, 0.6, 0.8), soft_step(1 - radius, 0.06))
    inside = radius < 1
    scene.attenuation_db[inside] = rng.uniform(0.3, 0.8)
    scene.attenuation_db += _edge_shadows(grid, place, radius, edge_db)
    scene.specular *= soft_step(radius - 1, 0.1)
    scene.specular += 0.4 * interface(grid, radius - 1, 0.14, 3)
    attributes = ("thin echogenic capsule",) + (("edge shadows",) if edge_db > 1 else ())
    subtype = "lobulated fibroadenoma" if is_lobulated else "oval fibroadenoma"
    return Lesion(inside, subtype, attributes, {"aspect": round(aspect, 2)})


def add_malignant_mass(
    rng: np.random.Generator, grid: BeamGrid, scene: Scene, place: Place, frequency_mhz: float
) -> Lesion:
    """Put a malignant mass into `scene`: often taller than wide, spiculated, with a halo, a shadow and calcifications.

    One in six is lobulated without spicules, and one in four attenuates little: the cues overlap with benign ones.
    """
    is_spiculated, has_shadow = rng.random() < 5 / 6, rng.random() < 0.75
    outline = _spiculated(rng, int(rng.integers(7, 15))) if is_spiculated else _lobulated(rng, range(2, 7), 0.24)
    aspect = rng.uniform(0.62, 1.0) if rng.random() < 0.8 else rng.uniform(1.0, 1.4)
    radius = _normalised_radius(grid, place, aspect, np.deg2rad(rng.uniform(-25, 25)), outline)
    texture = rng.uniform(-29, -22) + 3 * smooth_field(rng, grid, 0.5, 0.5)
    halo_db = rng.uniform(2, 8)
    halo = np.exp(-(((radius - 1.2) / np.float32(0.17)) ** 2)) * (radius > 1)
    scene.echo_db += halo_db * halo * np.clip(0.7 + 0.5 * smooth_field(rng, grid, 1.0, 1.0), 0, 1.4)
    scene.echo_db = blend(scene.echo_db, texture.astype(np.float32), soft_step(1 - radius, 0.25))
    inside = radius < 1
    # A shadow is drawn by its depth in dB, so that a scanner of low frequency shows it as well.
    height_cm = 0.2 * place.radius_mm / np.sqrt(aspect)
    shadow_db = rng.uniform(8, 18) if has_shadow else rng.uniform(-1, 2)
    scene.attenuation_db[inside] = 0.75 + shadow_db / (2 * frequency_mhz * height_cm)
    scene.specular *= soft_step(radius - 1, 0.1)
    num_calcifications = int(rng.integers(3, 9)) if rng.random() < 0.5 else 0
    x_mm, z_mm = grid.points_mm
    for _ in range(num_calcifications):
        angle, reach = rng.uniform(0, 2 * np.pi), 0.75 * place.radius_mm * np.sqrt(rng.random())
        x, z = place.centre_mm[0] + 0.8 * reach * np.cos(angle), place.centre_mm[1] + reach * np.sin(angle)
        spot = ((x_mm - np.float32(x)) / 0.2) ** 2 + ((z_mm - np.float32(z)) / 0.14) ** 2
        scene.specular += np.float32(rng.uniform(0.5, 1.3)) * np.exp(-spot)
    attributes: tuple[str, ...] = ("shadowing",) if has_shadow else ("no shadowing",)
    attributes += ("microcalcifications",) if num_calcifications else ()
    attributes += ("echogenic halo",) if halo_db > 5 else ()
    subtype = "spiculated mass" if is_spiculated else "irregular mass"
    return Lesion(inside, subtype, attributes, {"aspect": round(aspect, 2), "calcifications": num_calcifications})
