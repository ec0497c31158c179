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


def _leaflets(
    heart: Heart, centre: float, half_width: float, annulus: float, opening: float
) -> list[NDArray[np.float64]]:
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
    valves = _leaflets(heart, 0, annulus_half, heart.length, opening)
    if heart.is_four_chamber:
        valves += _leaflets(heart, tricuspid, 0.42 * heart.right_width, heart.length - 5, opening)
    for points in valves:
        leaflet = curve(across, down, points, rng.uniform(1.0, 1.5))
        scene.echo_db = blend(scene.echo_db, np.float32(rng.uniform(-8, -3)), leaflet)
    for side in (-1, 1):
        spot = ellipse(across, down, (side * (annulus_half + 3), heart.length + 1), (3.5, 2.5))
        scene.echo_db += 7 * np.exp(-(spot**2))


def _tissue(
    rng: np.random.Generator, grid: BeamGrid, heart: Heart, across: Float, down: Float
) -> tuple[Scene, NDArray[np.uint8]]:
    """Return chambers, walls and surroundings, and the class ids."""
    z_mm = grid.points_mm[1]
    border = 0.04 * smooth_field(rng, grid, 3.0, 3.0) + 0.025 * smooth_field(rng, grid, 1.2, 1.5)
    endocardium = _ventricle(heart, across, down, 0.0) + border
    epicardium = _ventricle(heart, across, down, heart.wall) + 0.5 * border
    above_annulus = down < heart.length
    cavity = (endocardium < 1) & above_annulus
    muscle = (epicardium < 1) & ~cavity & (down < heart.length + 2)

    atrium_centre = heart.length + 0.5 * heart.atrium + 2
    left_atrium = ellipse(across, down, (0, atrium_centre), (0.95 * heart.half_width, 0.52 * heart.atrium)) + border
    # Lung and mediastinum around the heart, weaker with depth; the chest wall at the probe.
    around = -27 + 4 * smooth_field(rng, grid, 5.0, 12.0) + 2 * smooth_field(rng, grid, 1.5, 5.0)
    near = np.exp(-z_mm / np.float32(rng.uniform(8, 14)))
    echo_db = around + 20 * near * np.clip(1 + 0.3 * smooth_field(rng, grid, 0.8, 12.0), 0, 1.5)
    blood = -52 + 3 * smooth_field(rng, grid, 6.0, 10.0) + 16 * near
    wall = -13 + 2.5 * smooth_field(rng, grid, 1.8, 5.0) + 1.5 * smooth_field(rng, grid, 4.0, 10.0)
    specular = np.zeros(grid.shape, np.float32)

    chambers, shells = [left_atrium], [(left_atrium, 0.0)]
    if heart.is_four_chamber:
        septum = heart.half_width + heart.wall
        opening = np.clip((down / heart.length - 0.28) / 0.6, 0, 1) ** 0.7
        right_edge = -septum + 1.0 + 2.5 * np.clip(0.5 - down / heart.length, 0, 1) * 0
        left_edge = right_edge - heart.right_width * opening
        right_ventricle = np.abs(across - (left_edge + right_edge) / 2) / np.maximum((right_edge - left_edge) / 2, 0.1)
        right_ventricle = np.where(down < heart.length - 5, right_ventricle, 2.0) + 1.5 * border
        free_wall = np.abs(across - (left_edge + right_edge) / 2) / np.maximum((right_edge - left_edge) / 2 + 5, 0.1)
        free_wall = np.where((down > 0.22 * heart.length) & (down < heart.length - 3), free_wall, 2.0)
        echo_db = np.where(free_wall < 1, wall - 2, echo_db)
        right_atrium = ellipse(
            across,
            down,
            (-septum - 0.42 * heart.right_width, atrium_centre - 3),
            (0.56 * heart.right_width, 0.5 * heart.atrium),
        )
        right_atrium += border
        chambers += [right_ventricle, right_atrium]
        shells += [(right_atrium, 0.0)]
    for atrium, _ in shells:
        thickness = distance_mm(grid, atrium - 1)
        echo_db = np.where((thickness > 0) & (thickness < 2.5), wall - 3, echo_db)
        specular += 0.5 * interface(grid, atrium - 1.08, 1.0, 2)
    # Fibres that run along the beam echo less: the walls fade where the beam grazes them.
    along, across_slope = grid.slopes(epicardium)
    head_on = np.abs(along) / (np.hypot(along, across_slope) + np.float32(1e-4))
    echo_db = np.where(muscle, wall + 6 * head_on - 1, echo_db)
    for chamber in chambers:
        echo_db = blend(echo_db, blood, soft_step(1 - chamber, 0.06))
    echo_db = np.where(cavity, blood, echo_db)
    # Papillary muscles stand in the cavity and belong to it, as in the labels of echocardiography databases.
    for side in (-1, 1) if not heart.is_four_chamber else (1,):
        place = (side * 0.72 * heart.half_width, rng.uniform(0.42, 0.55) * heart.length)
        papillary = ellipse(across, down, place, (rng.uniform(3, 5), rng.uniform(8, 12)))
        echo_db = blend(echo_db, wall - 3, soft_step(1 - papillary, 0.4) * cavity)
    patchy = np.clip(0.5 + 0.6 * smooth_field(rng, grid, 6.0, 6.0), 0, 1.5)
    specular += 0.5 * patchy * interface(grid, endocardium - 1, 0.7, 1.5) * above_annulus
    specular += (
        1.1
        * patchy
        * interface(grid, epicardium - 1.04, 1.0, 1.2)
        * above_annulus
        * ((across > 0) | (not heart.is_four_chamber))
    )
    attenuation_db = np.full(grid.shape, 0.5, np.float32)
    attenuation_db[cavity] = 0.2
    scene = Scene(
        echo_db.astype(np.float32), attenuation_db, specular.astype(np.float32), np.zeros(grid.num_beams, np.float32)
    )
    class_ids = np.zeros(grid.shape, np.uint8)
    class_ids[(left_atrium < 1) & (down > heart.length)] = 3
    class_ids[muscle & above_annulus] = 2
    class_ids[cavity] = 1
    return scene, class_ids


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
        gamma=rng.uniform(0.9, 1.15),
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
