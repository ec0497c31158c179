"""Heart from the apex, phased array: four-chamber or two-chamber view at end diastole or end systole."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.simulate.acoustics import Scene, Settings, interface
from data.simulate.fields import smooth_field, wavy_line
from data.simulate.geometry import BeamGrid, CurvedArray, Float
from data.simulate.phantom import Phantom
from data.simulate.shapes import bend, blend, curve, distance_mm, ellipse, rotated, soft_step

CLASSES = {1: "left ventricle", 2: "myocardium", 3: "left atrium"}
# The ventricle is half an ellipse down to here, in parts of its length; from here to the annulus it narrows a little.
WIDEST = 0.62


@dataclass(frozen=True)
class Heart:
    """Sizes in mm; the frame's origin is the inner apex, `down` runs along the ventricle, `across` to the right."""

    length: float  # of the left ventricle, apex to annulus
    half_width: float  # of the left ventricle
    wall: float
    atrium: float  # length of the left atrium
    right_width: float  # of the right ventricle at its base
    is_systole: bool
    is_four_chamber: bool


def _ventricle(heart: Heart, across: Float, down: Float, wall: float) -> Float:
    """Return 1 on the outline of the left ventricle grown by `wall` mm, below 1 inside; open at the annulus."""
    half_width, widest = heart.half_width + wall, WIDEST * heart.length
    apex = ellipse(across, down, (0, widest), (half_width, widest + 0.9 * wall))
    taper = 1 - 0.16 * np.clip((down - widest) / (heart.length - widest), 0, 1.2) ** 2
    return np.where(down < widest, apex, np.abs(across) / (half_width * taper))


def _leaflets(centre: float, half_width: float, annulus: float, opening: float) -> list[NDArray[np.float64]]:
    """Return the two leaflets of a valve as curves; `opening` 0: closed, 1: hanging into the ventricle."""
    curves = []
    for side in (-1, 1):
        hinge = (centre + side * half_width, annulus)
        reach = (1 - 0.7 * opening) * half_width if side < 0 else (1 - 0.75 * opening) * half_width
        tip = (centre + side * (half_width - reach), annulus - 4 - 11 * opening)
        curves.append(bend(hinge, (centre + side * half_width * 0.75, annulus - 2 - 9 * opening), tip))
    return curves


def _add_valves(
    rng: np.random.Generator, heart: Heart, scene: Scene, across: Float, down: Float, tricuspid: float
) -> None:
    opening = rng.uniform(0, 0.15) if heart.is_systole else rng.uniform(0.5, 1.0)
    annulus_half = 0.86 * heart.half_width
    valves = _leaflets(0, annulus_half, heart.length, opening)
    if heart.is_four_chamber:
        valves += _leaflets(tricuspid, 0.42 * heart.right_width, heart.length - 5, opening)
    for points in valves:
        leaflet = curve(across, down, points, rng.uniform(0.8, 1.2))
        scene.echo_db = blend(scene.echo_db, np.float32(rng.uniform(-12, -6)), leaflet)
    for side in (-1, 1):
        spot = ellipse(across, down, (side * (annulus_half + 3), heart.length + 1), (3.5, 2.5))
        scene.echo_db += 7 * np.exp(-(spot**2))


@dataclass(frozen=True)
class Chambers:
    """Normalised radii, below 1 inside, each [num_ranges, num_beams]; the right heart is None in two chambers."""

    left_ventricle: Float
    epicardium: Float
    left_atrium: Float
    right_ventricle: Float | None
    right_wall: Float | None  # free wall of the right ventricle, outside
    right_atrium: Float | None


def _atrium(heart: Heart, across: Float, down: Float, centre: float, half_width: float, annulus: float) -> Float:
    """Return the normalised radius of an atrium that opens to the valve plane at `annulus`."""
    oval = ellipse(across, down, (centre, annulus + 0.42 * heart.atrium), (half_width, 0.58 * heart.atrium))
    return np.where(down > annulus, oval, np.float32(2.0))


def _chambers(rng: np.random.Generator, grid: BeamGrid, heart: Heart, across: Float, down: Float) -> Chambers:
    # Trabeculae make the inner border rough, the outer one follows it only loosely.
    # Beams crowd at the probe, and with them a field's waves: there it is made lower.
    crowding = np.minimum(grid.range_mm * np.float32(2 / grid.geometry.depth_mm), 1)[:, None]
    slow = 0.05 * crowding * smooth_field(rng, grid, 7.0, 8.0)
    rough = 0.025 * crowding * smooth_field(rng, grid, 1.8, 2.5)
    left_ventricle = _ventricle(heart, across, down, 0.0) + slow + rough
    epicardium = _ventricle(heart, across, down, heart.wall) + 0.7 * slow
    left_atrium = _atrium(heart, across, down, 0.0, heart.half_width * rng.uniform(0.9, 1.05), heart.length) + slow
    if not heart.is_four_chamber:
        return Chambers(left_ventricle, epicardium, left_atrium, None, None, None)
    # Crescent along the septum, wider towards the base, its apex short of the left one.
    septum = -heart.half_width - heart.wall + 1.0
    annulus = heart.length - 5
    width = heart.right_width * np.clip((down / heart.length - 0.26) / 0.66, 0, 1) ** 0.6
    middle = septum - width / 2
    cavity = np.abs(across - middle) / np.maximum(width / 2, 0.1) + 2 * slow + 2 * rough
    wall = np.abs(across - middle + 2) / np.maximum(width / 2 + 4, 0.1) + slow
    right_ventricle = np.where(down < annulus, cavity, np.float32(2.0))
    right_wall = np.where((down > 0.2 * heart.length) & (down < annulus + 2), wall, np.float32(2.0))
    centre = septum - 0.45 * heart.right_width
    right_atrium = _atrium(heart, across, down, centre, 0.52 * heart.right_width, annulus) + slow
    return Chambers(left_ventricle, epicardium, left_atrium, right_ventricle, right_wall, right_atrium)


def _tissue(
    rng: np.random.Generator, grid: BeamGrid, heart: Heart, across: Float, down: Float
) -> tuple[Scene, NDArray[np.uint8]]:
    """Return chambers, walls and surroundings, and the class ids."""
    chambers = _chambers(rng, grid, heart, across, down)
    above_annulus = down < heart.length
    cavity = (chambers.left_ventricle < 1) & above_annulus
    muscle = (chambers.epicardium < 1) & ~cavity & above_annulus
    near = np.exp(-grid.points_mm[1] / np.float32(rng.uniform(8, 14)))
    # Lung and mediastinum around the heart; the chest wall at the probe.
    around = -33 + 4.5 * smooth_field(rng, grid, 6.0, 12.0) + 2 * smooth_field(rng, grid, 1.5, 5.0)
    around += 22 * near * np.clip(1 + 0.3 * smooth_field(rng, grid, 0.8, 12.0), 0, 1.5)
    behind = soft_step(down - heart.length - heart.atrium, 12.0)
    around += rng.uniform(4, 10) * behind
    blood = -54 + 3 * smooth_field(rng, grid, 6.0, 10.0) + 18 * near
    wall = -16 + 2.5 * smooth_field(rng, grid, 1.8, 4.0) + 2.0 * smooth_field(rng, grid, 5.0, 10.0)

    # Fibres that run along the beam echo less: walls fade where the beam grazes them.
    along, steepness = grid.slopes(_ventricle(heart, across, down, heart.wall))
    head_on = np.abs(along) / steepness
    echo_db: Float = around
    fade = np.clip(0.6 + 0.5 * smooth_field(rng, grid, 7.0, 7.0), 0, 1)
    for atrium in (chambers.left_atrium, chambers.right_atrium):
        if atrium is not None:
            outside_mm = distance_mm(grid, atrium - 1)
            shell = np.exp(-(((outside_mm - 1.5) / np.float32(1.6)) ** 2)) * fade * (atrium < 1.9)
            echo_db = blend(echo_db, wall - 1, shell)
    if chambers.right_wall is not None:
        echo_db = blend(echo_db, wall - 3, soft_step(1 - chambers.right_wall, 0.05))
    echo_db = np.where(muscle, wall + 5 * head_on, echo_db)
    for chamber in (chambers.left_atrium, chambers.right_atrium, chambers.right_ventricle):
        if chamber is not None:
            echo_db = blend(echo_db, blood, soft_step(1 - chamber, 0.08))
    echo_db = np.where(cavity, blood, echo_db)
    # Papillary muscles stand in the cavity and belong to it, as in the labels of echocardiography databases.
    for side in (1,) if heart.is_four_chamber else (-1, 1):
        place = (side * rng.uniform(0.7, 0.85) * heart.half_width, rng.uniform(0.42, 0.58) * heart.length)
        papillary = ellipse(across, down, place, (rng.uniform(3, 5), rng.uniform(8, 13)))
        echo_db = blend(echo_db, wall - 3, soft_step(1 - papillary, 0.5) * cavity)
    # The pericardium is the brightest line of the free walls; the septum has none.
    pericardium = interface(grid, chambers.epicardium - 1.03, 1.0, 0.8) * above_annulus
    specular = 0.5 * fade * pericardium * ((across > 0) | (not heart.is_four_chamber))
    specular += 0.35 * fade * interface(grid, chambers.left_ventricle - 1, 0.8, 2) * above_annulus
    specular += 0.3 * fade * interface(grid, chambers.left_atrium - 1, 1.0, 3) * (down > heart.length + 5)
    attenuation_db = np.where(cavity, np.float32(0.2), np.float32(0.5))
    class_ids = np.zeros(grid.shape, np.uint8)
    class_ids[chambers.left_atrium < 1] = 3
    class_ids[muscle] = 2
    class_ids[cavity] = 1
    return Scene(echo_db, attenuation_db, specular, np.zeros(grid.num_beams, np.float32)), class_ids


def draw(rng: np.random.Generator, size: int) -> Phantom:
    """Return a heart for a picture of `size` pixels; systole and diastole with equal chances."""
    is_systole, is_four_chamber = rng.random() < 0.5, rng.random() < 0.65
    quality = str(rng.choice(("", "lateral wall dropout", "dilated left ventricle", "thick myocardium")))
    wide = 1.25 if quality.startswith("dilated") else 1.0
    thick = 1.45 if quality.startswith("thick") else 1.0
    heart = Heart(
        length=rng.uniform(78, 90) * (0.86 if is_systole else 1.0) * wide**0.4,
        half_width=rng.uniform(20, 24) * (0.72 if is_systole else 1.0) * wide,
        wall=rng.uniform(8, 10) * (1.3 if is_systole else 1.0) * thick,
        atrium=rng.uniform(32, 40) * (1.2 if is_systole else 1.0),
        right_width=rng.uniform(24, 32) * (0.85 if is_systole else 1.0),
        is_systole=is_systole,
        is_four_chamber=is_four_chamber,
    )
    depth_mm = rng.uniform(150, 168)
    geometry = CurvedArray(rng.uniform(2, 5), np.deg2rad(rng.uniform(36, 41)), depth_mm)
    grid = BeamGrid.for_picture(geometry, size)
    settings = Settings(
        frequency_mhz=rng.uniform(2.2, 3.4),
        dynamic_range_db=rng.uniform(48, 58),
        looks=int(rng.integers(1, 3)),
        f_number=rng.uniform(3.0, 4.0),
        focus_mm=rng.uniform(60, 100),
        tgc_db=0.5,
        gain_db=rng.uniform(-1, 3),
        floor_db=-52.0,
        side_lobe_db=rng.uniform(-34, -27),
        gamma=rng.uniform(1.0, 1.25),
    )
    apex_mm = (rng.uniform(-4, 8) + (8 if is_four_chamber else 0), rng.uniform(16, 24) + heart.wall)
    tilt = np.deg2rad(rng.uniform(-6, 10) if is_four_chamber else rng.uniform(-10, 6))
    across, down = rotated(grid, apex_mm, tilt)
    scene, class_ids = _tissue(rng, grid, heart, across, down)
    tricuspid = -heart.half_width - heart.wall - 0.45 * heart.right_width
    _add_valves(rng, heart, scene, across, down, tricuspid)
    loss_db = np.clip(3 * wavy_line(rng, grid, 10) - 2, 0, 9)
    if quality.startswith("lateral"):
        loss_db = loss_db + rng.uniform(14, 22) * soft_step(grid.beam - rng.uniform(0.1, 0.25), 0.3)
    scene.beam_loss_db = loss_db + 4 * np.abs(grid.beam) ** 3
    view = "four chamber view" if is_four_chamber else "two chamber view"
    label = "end-systole" if is_systole else "end-diastole"
    words = f"apical {view}, {label.replace('-', ' ')}" + (f", {quality}" if quality else "")
    facts: dict[str, float | str] = {
        "subtype": view,
        "lv_length_mm": round(heart.length, 1),
        "lv_width_mm": round(2 * heart.half_width, 1),
        "wall_mm": round(heart.wall, 1),
    }
    return Phantom(grid, scene, settings, class_ids, label, f"simulated cardiac ultrasound, {words}", facts)
