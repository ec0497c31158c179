"""Fetal head in the uterus under a convex probe: transthalamic, transventricular and transcerebellar planes."""

from dataclasses import dataclass

import numpy as np

from data.simulate.acoustics import Scene, Settings, interface, layer_interface
from data.simulate.fields import smooth_field, wavy_line
from data.simulate.geometry import BeamGrid, CurvedArray, Float
from data.simulate.phantom import Phantom
from data.simulate.shapes import bend, blend, curve, distance_mm, ellipse, rotated, soft_step

CLASSES = {1: "head"}
PLANES = ("transthalamic", "transventricular", "transcerebellar")


@dataclass(frozen=True)
class Head:
    """An ellipse in mm; its frame has the midline along `across`, the forehead at positive `across`."""

    centre: tuple[float, float]
    half_length: float  # of the occipitofrontal diameter, outer to outer
    half_width: float  # of the biparietal diameter
    tilt_rad: float
    skull: float  # thickness


def _uterus(rng: np.random.Generator, grid: BeamGrid, head: Head, placenta: str) -> Scene:
    """Return abdominal wall, uterine wall, placenta and a pocket of fluid, without the fetus."""
    range_mm = grid.range_mm[:, None]
    skin_mm = rng.uniform(3, 5) + 0.3 * wavy_line(rng, grid, 25)
    wall_mm = rng.uniform(13, 18) + 1.0 * wavy_line(rng, grid, 25)
    uterus_mm = wall_mm + rng.uniform(5, 8) + 0.8 * wavy_line(rng, grid, 20)
    layers = 5 * np.clip(smooth_field(rng, grid, 0.7, 25.0), -1, 2)
    mottled = smooth_field(rng, grid, 2.0, 4.0)
    # The pocket is an ellipse around the head, dented by what lies outside.
    across, down = rotated(grid, head.centre, 0.0)
    room = rng.uniform(1.12, 1.3), rng.uniform(1.1, 1.25)
    if placenta == "none":
        room = room[0] + 0.35, room[1] + 0.08
    pocket = ellipse(across, down, (rng.uniform(-8, 8), 0), (room[0] * head.half_length, room[1] * head.half_width))
    pocket += 0.1 * smooth_field(rng, grid, 12.0, 14.0)
    outside = distance_mm(grid, pocket - 1)
    in_fluid = soft_step(-outside, 1.0) * soft_step(range_mm - uterus_mm, 1.0)

    echo_db: Float = -20 + 3 * smooth_field(rng, grid, 3.0, 8.0) + 2 * smooth_field(rng, grid, 1.0, 5.0)
    if placenta != "none":
        toward = np.float32(-1 if placenta == "anterior" else 1) * down + np.float32(rng.uniform(-0.5, 0.5)) * across
        thickness = rng.uniform(18, 26) * np.clip(1.4 * toward / (np.hypot(across, down) + 1), 0, 1)
        is_placenta = soft_step(thickness - outside, 3.0) * soft_step(toward, 8.0)
        echo_db = blend(echo_db, -11 + 1.5 * mottled, is_placenta)
    echo_db = np.where(range_mm < uterus_mm, -19 + 1.5 * mottled, echo_db)
    echo_db = np.where(range_mm < wall_mm, -14 + layers, echo_db)
    echo_db = blend(echo_db, -64 + 2 * mottled, in_fluid)
    specular = np.zeros(grid.shape, np.float32)
    for line_mm, strength in ((skin_mm, 0.5), (wall_mm, 0.6), (uterus_mm, 0.35)):
        broken = np.clip(0.6 + 0.5 * wavy_line(rng, grid, 10), 0.05, 1.4)
        specular += np.float32(strength) * broken * layer_interface(grid, range_mm - line_mm, line_mm, 0.6, 3)
    specular += 0.5 * interface(grid, pocket - 1, 0.7, 3) * (range_mm > uterus_mm)
    attenuation_db = np.full(grid.shape, 0.5, np.float32) - 0.3 * in_fluid
    return Scene(echo_db, attenuation_db, specular, np.zeros(grid.num_beams, np.float32))


def _lines(rng: np.random.Generator, scene: Scene, across: Float, down: Float, head: Head) -> None:
    """Draw the midline echo, broken by the cavum septi pellucidi."""
    length, width = head.half_length, head.half_width
    cavum = (0.28 * length, 0.50 * length)
    for start, end in ((-0.86 * length, cavum[0] - 1), (cavum[1] + 1, 0.9 * length)):
        middle = ((start + end) / 2, rng.uniform(-0.8, 0.8))
        line = curve(across, down, bend((start, 0), middle, (end, 0)), 0.8)
        scene.echo_db = blend(scene.echo_db, np.float32(-4), 0.85 * line)
    half_height = rng.uniform(2.4, 3.4)
    box = np.maximum(np.abs(across - sum(cavum) / 2) / ((cavum[1] - cavum[0]) / 2), np.abs(down) / half_height)
    scene.echo_db = np.where(box < 1, np.float32(-55), scene.echo_db)
    for side in (-1, 1):
        edge = curve(across, down, np.array([[cavum[0], side * half_height], [cavum[1], side * half_height]]), 0.6)
        scene.echo_db = blend(scene.echo_db, np.float32(-5), 0.9 * edge)
    for side in (-1, 1):
        insula = bend(
            (-0.1 * length, side * 0.62 * width),
            (0.12 * length, side * 0.52 * width),
            (0.4 * length, side * 0.66 * width),
        )
        scene.echo_db = blend(scene.echo_db, np.float32(-9), 0.8 * curve(across, down, insula, 0.9))


def _thalami(grid: BeamGrid, scene: Scene, across: Float, down: Float, head: Head) -> None:
    for side in (-1, 1):
        centre = (-0.04 * head.half_length, side * 0.2 * head.half_width)
        thalamus = ellipse(across, down, centre, (0.22 * head.half_length, 0.17 * head.half_width))
        rim = np.exp(-((distance_mm(grid, thalamus - 1) / np.float32(0.9)) ** 2))
        scene.echo_db = blend(scene.echo_db, np.float32(-36), soft_step(1 - thalamus, 0.2))
        scene.echo_db += 9 * rim * (np.abs(down) > 1)


def _ventricles(rng: np.random.Generator, grid: BeamGrid, scene: Scene, across: Float, down: Float, head: Head) -> None:
    """Draw the lateral ventricles, without echoes, each with its bright choroid plexus."""
    for side in (-1, 1):
        centre = (-0.38 * head.half_length, side * 0.36 * head.half_width)
        ventricle = ellipse(
            across, down - side * 0.12 * across, centre, (0.42 * head.half_length, 0.17 * head.half_width)
        )
        choroid = ellipse(
            across,
            down - side * 0.12 * across,
            (centre[0] + 0.1 * head.half_length, centre[1]),
            (0.25 * head.half_length, 0.1 * head.half_width),
        )
        rim = np.exp(-((distance_mm(grid, ventricle - 1) / np.float32(0.8)) ** 2))
        scene.echo_db = blend(scene.echo_db, np.float32(-48), soft_step(1 - ventricle, 0.15)) + 11 * rim
        plexus = -6 + 2.5 * smooth_field(rng, grid, 1.0, 1.0)
        scene.echo_db = blend(scene.echo_db, plexus, soft_step(1.1 - choroid, 0.3))


def _cerebellum(grid: BeamGrid, scene: Scene, across: Float, down: Float, head: Head) -> None:
    """Draw the cerebellum's two lobes and vermis, and the cisterna magna behind them."""
    length, width = head.half_length, head.half_width
    cistern = ellipse(across, down, (-0.8 * length, 0), (0.14 * length, 0.36 * width))
    scene.echo_db = blend(scene.echo_db, np.float32(-55), soft_step(1.15 - cistern, 0.3))
    folia = -21 + 4 * np.sin(distance_mm(grid, across + 0.6 * length) * np.float32(2.2))
    for side in (-1, 1):
        lobe = ellipse(across, down, (-0.58 * length, side * 0.24 * width), (0.16 * length, 0.25 * width))
        rim = np.exp(-((distance_mm(grid, lobe - 1) / np.float32(0.9)) ** 2))
        scene.echo_db = blend(scene.echo_db, folia, soft_step(1 - lobe, 0.15)) + 12 * rim
    vermis = ellipse(across, down, (-0.58 * length, 0), (0.11 * length, 0.09 * width))
    scene.echo_db = blend(scene.echo_db, np.float32(-6), soft_step(1.2 - vermis, 0.4))


def _add_head(rng: np.random.Generator, grid: BeamGrid, scene: Scene, head: Head, plane: str) -> Float:
    """Put a fetal head into `scene`; return its normalised radius, 1 on the outer skull."""
    across, down = rotated(grid, head.centre, head.tilt_rad)
    radius = ellipse(across, down, (0, 0), (head.half_length, head.half_width))
    scalp = np.exp(-(((distance_mm(grid, radius - 1) - 2.0) / np.float32(1.5)) ** 2))
    scene.echo_db = np.maximum(scene.echo_db, blend(scene.echo_db, np.float32(-24), scalp))
    sulci = 9 * np.clip(np.exp(-((distance_mm(grid, smooth_field(rng, grid, 2.2, 3.5)) / np.float32(0.7)) ** 2)), 0, 1)
    brain = -26 + 2 * smooth_field(rng, grid, 2.0, 3.0) + sulci * np.clip((radius - 0.55) / 0.3, 0, 1)
    inside = soft_step(1 - radius, 0.03)
    scene.specular *= 1 - inside
    scene.echo_db = blend(scene.echo_db, brain, inside)
    if plane == "transventricular":
        _ventricles(rng, grid, scene, across, down, head)
    else:
        _thalami(grid, scene, across, down, head)
    if plane == "transcerebellar":
        _cerebellum(grid, scene, across, down, head)
    _lines(rng, scene, across, down, head)

    depth_in_skull = distance_mm(grid, radius - 1) + head.skull / 2
    along, steepness = grid.slopes(radius)
    head_on = np.abs(along) / steepness
    bone = np.exp(-((depth_in_skull / np.float32(head.skull / 2)) ** 2))
    scene.echo_db = blend(scene.echo_db, -16 + 15 * head_on**1.5, bone)
    scene.specular += 1.0 * bone * head_on**3 * np.clip(1 + 0.3 * smooth_field(rng, grid, 8.0, 8.0), 0.3, 1.6)
    # Bone takes most where the beam grazes it: the shadows at the sides of the head.
    scene.attenuation_db = scene.attenuation_db + bone * (1.4 + rng.uniform(3, 6) * (1 - head_on) ** 2)
    # The near half of the brain lies under the near skull's reverberation.
    haze = np.exp(-np.clip(down + head.half_width, 0, None) / np.float32(0.5 * head.half_width)) * inside
    scene.echo_db = np.maximum(scene.echo_db, blend(np.full(grid.shape, -50, np.float32), np.float32(-16), haze))
    return radius


def draw(rng: np.random.Generator, size: int) -> Phantom:
    """Return a fetal head for a picture of `size` pixels; the three planes with equal chances."""
    plane = str(rng.choice(PLANES))
    placenta = str(rng.choice(("anterior", "posterior", "none")))
    half_width = rng.uniform(33, 41)
    head = Head(
        centre=(rng.uniform(-6, 6), rng.uniform(28, 34) + (8 if placenta == "anterior" else 0) + half_width),
        half_length=half_width * rng.uniform(1.2, 1.33),
        half_width=half_width,
        tilt_rad=np.deg2rad(rng.uniform(-22, 22)) + (np.pi if rng.random() < 0.5 else 0.0),
        skull=rng.uniform(1.8, 2.6),
    )
    depth_mm = head.centre[1] + half_width + rng.uniform(15, 28)
    geometry = CurvedArray(rng.uniform(45, 60), np.deg2rad(rng.uniform(31, 36)), depth_mm, crop=0.85)
    grid = BeamGrid.for_picture(geometry, size)
    settings = Settings(
        frequency_mhz=rng.uniform(3.0, 4.5),
        dynamic_range_db=rng.uniform(50, 60),
        looks=int(rng.integers(1, 4)),
        f_number=rng.uniform(2.5, 3.5),
        focus_mm=head.centre[1],
        tgc_db=0.45,
        gain_db=rng.uniform(0, 4),
        floor_db=-58.0,
        side_lobe_db=rng.uniform(-38, -32),
        gamma=rng.uniform(0.9, 1.15),
    )
    scene = _uterus(rng, grid, head, placenta)
    radius = _add_head(rng, grid, scene, head, plane)
    scene.beam_loss_db = np.clip(3 * wavy_line(rng, grid, 12) - 2, 0, 8)
    words = "fluid around the head" if placenta == "none" else f"{placenta} placenta"
    facts: dict[str, float | str] = {
        "subtype": plane,
        "placenta": placenta,
        "biparietal_mm": round(2 * half_width, 1),
        "occipitofrontal_mm": round(2 * head.half_length, 1),
        "tilt_deg": round(float(np.rad2deg(head.tilt_rad)), 1),
    }
    prompt = f"simulated fetal ultrasound, head, {plane} plane, {words}"
    return Phantom(grid, scene, settings, (radius < 1).astype(np.uint8), plane, prompt, facts)
