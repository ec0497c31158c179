"""Breast under a linear probe: skin, fat, gland, pectoral muscle, chest wall, and a lesion in two of three."""

import numpy as np

from data.simulate.acoustics import Scene, Settings, interface, layer_interface
from data.simulate.fields import smooth_field, wavy_line
from data.simulate.geometry import BeamGrid, FlatArray, Float
from data.simulate.lesion import Lesion, Place, add_cyst, add_fibroadenoma, add_malignant_mass
from data.simulate.phantom import Phantom
from data.simulate.shapes import blend, distance_mm, soft_step

CLASSES = {1: "lesion"}
SCANNERS = ("linear", "trapezoid")
TYPICAL_ATTENUATION = 0.7  # dB/cm/MHz, what the gain compensates


def _probe(rng: np.random.Generator, scanner: str) -> tuple[FlatArray, Settings]:
    """Return the field of view and the settings of one of the two vendors."""
    if scanner == "linear":
        depth_mm = rng.uniform(32, 42)
        return FlatArray(19.0, 0.0, depth_mm), Settings(
            frequency_mhz=rng.uniform(6.5, 10),
            dynamic_range_db=rng.uniform(56, 66),
            looks=int(rng.integers(1, 5)),
            f_number=rng.uniform(1.4, 2.2),
            focus_mm=rng.uniform(0.4, 0.6) * depth_mm,
            tgc_db=TYPICAL_ATTENUATION,
            gain_db=rng.uniform(-2, 3),
            gamma=rng.uniform(1.0, 1.25),
            contrast=rng.uniform(0.1, 0.5),
        )
    depth_mm = rng.uniform(38, 44)
    return FlatArray(13.0, np.deg2rad(rng.uniform(15, 20)), depth_mm), Settings(
        frequency_mhz=rng.uniform(4.5, 6),
        dynamic_range_db=rng.uniform(43, 50),
        looks=int(rng.integers(1, 4)),
        f_number=rng.uniform(2.2, 3.0),
        focus_mm=rng.uniform(0.4, 0.6) * depth_mm,
        tgc_db=TYPICAL_ATTENUATION - 0.05,
        gain_db=rng.uniform(-1, 2),
        gamma=rng.uniform(1.1, 1.4),
        contrast=0.9,
    )


def _fat(rng: np.random.Generator, grid: BeamGrid, base_mm: Float, peaks: Float) -> Float:
    """Return the echo of subcutaneous fat in dB: dark, with septa and Cooper's ligaments on the gland's peaks."""
    z_mm = grid.points_mm[1]
    lean = rng.uniform(-0.5, 0.5)
    half_width = grid.geometry.width_mm / 2
    foot = grid.beam * half_width
    wobble = 0.5 * smooth_field(rng, grid, 2.0, 4.0)
    ligaments = np.interp(foot + lean * (base_mm - z_mm) + wobble, foot, peaks).astype(np.float32)
    septa = smooth_field(rng, grid, 2.0, 4.0)
    fade = np.clip(0.5 + 0.5 * smooth_field(rng, grid, 2.5, 2.5), 0, 1)
    strength = 15 * np.exp(-((distance_mm(grid, septa) / np.float32(0.16)) ** 2)) * fade
    strength = np.maximum(strength, 16 * np.exp(-((distance_mm(grid, ligaments) / np.float32(0.2)) ** 2)))
    return -21 + 2.0 * smooth_field(rng, grid, 0.9, 1.8) + strength


def _gland(rng: np.random.Generator, grid: BeamGrid, density: float) -> Float:
    """Return the echo of gland in dB: bright, with ducts, and fat lobules where the breast is not dense."""
    fine = smooth_field(rng, grid, 0.3, 0.9)
    echo = -6 + 3 * density + 3.2 * smooth_field(rng, grid, 0.9, 2.4) + 2.4 * fine
    echo -= 9 * soft_step(smooth_field(rng, grid, 0.35, 2.2) - 0.8, 0.9)
    lobules = smooth_field(rng, grid, 1.5, 3.2) + 0.15 * fine - np.float32(0.4 + 2.0 * density)
    return blend(echo, -20 + 1.5 * fine, soft_step(lobules, 0.35))


def _muscle(rng: np.random.Generator, grid: BeamGrid) -> Float:
    """Return the echo of the pectoral muscle in dB: dark, with bright striae along its fibres."""
    return -19 + 6 * np.clip(smooth_field(rng, grid, 0.22, 5.0) - 0.2, 0, 2.2) + smooth_field(rng, grid, 1.0, 2.0)


def _add_chest_wall(rng: np.random.Generator, grid: BeamGrid, scene: Scene, top_mm: Float) -> bool:
    """Put pleura and sometimes a rib with its shadow under `top_mm` [num_beams]; return whether there is a rib."""
    x_mm, z_mm = grid.points_mm
    below = z_mm - top_mm
    scene.echo_db = np.where(below > 0, -22 - 0.8 * below + 2 * smooth_field(rng, grid, 0.5, 3.0), scene.echo_db)
    broken = np.clip(0.6 + 0.5 * wavy_line(rng, grid, 3), 0.1, 1.4)
    pleura = np.float32(0.6) * broken * layer_interface(grid, below, top_mm, 0.22, 8)
    if rng.random() > 0.3:
        scene.specular += pleura
        return False
    half_mm, rise_mm = rng.uniform(5, 8), rng.uniform(2.0, 3.5)
    offset = (x_mm - np.float32(rng.uniform(-11, 11))) / np.float32(half_mm)
    cap = below + rise_mm * np.sqrt(np.clip(1 - offset**2, 0, 1)) - 0.4
    is_rib = (np.abs(offset) < 1) & (cap > 0)
    scene.echo_db[is_rib] = -24
    scene.attenuation_db[is_rib] = 5.0
    scene.specular += np.where(np.abs(offset) < 1, 0.9 * interface(grid, cap, 0.3, 2), pleura)
    return True


def _layers(rng: np.random.Generator, grid: BeamGrid, density: float) -> tuple[Scene, Float, bool]:
    """Return a healthy breast, where its gland begins in mm [num_beams], and whether a rib is seen."""
    z_mm, depth_mm = grid.points_mm[1], grid.geometry.depth_mm
    skin_mm = rng.uniform(1.4, 2.3) + 0.08 * wavy_line(rng, grid, 8)
    peaks = wavy_line(rng, grid, 5)
    fat_base_mm = rng.uniform(6, 13) - 2 * density + 1.0 * wavy_line(rng, grid, 9)
    # Scalloped: the gland is pulled up where a ligament holds it.
    fat_base_mm = np.maximum(fat_base_mm - 2.6 * np.exp(-np.abs(peaks) / 0.4), skin_mm + 1.2)
    gland_base_mm = np.maximum(rng.uniform(0.55, 0.68) * depth_mm + 1.1 * wavy_line(rng, grid, 6), fat_base_mm + 3)
    fascia_mm = gland_base_mm + np.clip(rng.uniform(-1, 3) + 1.2 * wavy_line(rng, grid, 7), 0.3, None)
    chest_mm = np.maximum(rng.uniform(0.85, 1.0) * depth_mm + 0.6 * wavy_line(rng, grid, 10), fascia_mm + 3)

    retromammary = -19 + 1.5 * smooth_field(rng, grid, 0.6, 1.5)
    echo_db = _muscle(rng, grid)
    echo_db = np.where(z_mm < fascia_mm, retromammary, echo_db)
    echo_db = np.where(z_mm < gland_base_mm, _gland(rng, grid, density), echo_db)
    echo_db = np.where(z_mm < fat_base_mm, _fat(rng, grid, fat_base_mm, peaks), echo_db)
    echo_db = np.where(z_mm < skin_mm, np.float32(-3), echo_db).astype(np.float32)
    bounds = (skin_mm, fat_base_mm, gland_base_mm, fascia_mm)
    attenuation_db = np.full(grid.shape, 0.8, np.float32)
    for bound_mm, value in zip(bounds[::-1], (0.6, 0.6 + 0.25 * density, 0.6, 1.0), strict=True):
        attenuation_db[z_mm < bound_mm] = value
    specular = np.zeros(grid.shape, np.float32)
    for bound_mm, strength in zip(bounds, (0.9, 0.25, 0.35, 0.9), strict=True):
        broken = np.clip(0.6 + 0.5 * wavy_line(rng, grid, 2.5), 0.05, 1.4)
        specular += np.float32(strength) * broken * layer_interface(grid, z_mm - bound_mm, bound_mm, 0.2, 6)
    specular += 1.5 * np.exp(-((z_mm / np.float32(0.3)) ** 2))
    beam_loss_db = np.clip(2 * wavy_line(rng, grid, 4) - 1, 0, 6)
    scene = Scene(echo_db, attenuation_db, specular.astype(np.float32), beam_loss_db)
    has_rib = _add_chest_wall(rng, grid, scene, chest_mm)
    return scene, fat_base_mm, has_rib


def _draw_lesion(
    rng: np.random.Generator, grid: BeamGrid, scene: Scene, gland_top_mm: Float, label: str, frequency_mhz: float
) -> Lesion:
    """Put a lesion of `label` into the gland of `scene`."""
    radius_mm = rng.uniform(3.0, 6.5)
    x = rng.uniform(-9, 9)
    top_mm = float(np.interp(x, grid.beam * grid.geometry.width_mm / 2, gland_top_mm))
    z = max(top_mm + rng.uniform(0.3, 1.0) * radius_mm, 1.4 * radius_mm + 2)
    place = Place((x, z), radius_mm)
    if label == "malignant":
        return add_malignant_mass(rng, grid, scene, place, frequency_mhz)
    if rng.random() < 0.4:
        return add_cyst(rng, grid, scene, place)
    return add_fibroadenoma(rng, grid, scene, place)


def draw(rng: np.random.Generator, size: int, scanner: str) -> Phantom:
    """Return a breast for a picture of `size` pixels: normal, benign or malignant with equal chances."""
    label = str(rng.choice(("normal", "benign", "malignant")))
    geometry, settings = _probe(rng, scanner)
    grid = BeamGrid.for_picture(geometry, size)
    density = rng.random()
    breast = "fatty breast" if density < 1 / 3 else "scattered density" if density < 2 / 3 else "dense breast"
    scene, gland_top_mm, has_rib = _layers(rng, grid, density)
    facts: dict[str, float | str] = {"density": round(density, 3), "rib": str(has_rib).lower()}
    class_ids = np.zeros(grid.shape, np.uint8)
    if label == "normal":
        facts["subtype"] = "normal"
        words = breast + (", rib" if has_rib else "")
    else:
        lesion = _draw_lesion(rng, grid, scene, gland_top_mm, label, settings.frequency_mhz)
        class_ids[lesion.inside] = 1
        facts |= {"subtype": lesion.subtype, "attributes": ", ".join(lesion.attributes), **lesion.facts}
        words = f"{lesion.subtype} with {rng.choice(lesion.attributes)}"
    return Phantom(grid, scene, settings, class_ids, label, f"simulated breast ultrasound, {label}, {words}", facts)
