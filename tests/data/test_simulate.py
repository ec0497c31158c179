"""The simulator keeps its promises: determinism, shapes, classes, and the physics that a reader sees."""

import re

import numpy as np
import pytest

from data.simulate import MASK_CLASSES, PRESETS, Simulated, simulate
from data.simulate.acoustics import Scene, Settings, envelope
from data.simulate.fields import smooth_field
from data.simulate.geometry import BeamGrid, CurvedArray, FlatArray, Geometry

BOTH_BREASTS_AND_OTHERS = [("breast", "linear"), ("breast", "trapezoid"), ("cardiac", "linear"), ("fetal", "linear")]


@pytest.fixture(scope="module")
def breasts() -> list[Simulated]:
    return [simulate("breast", 3, index, 64) for index in range(300)]


def homogeneous_envelope(looks: int) -> np.ndarray:
    grid = BeamGrid.for_picture(FlatArray(19.0, 0.0, 38.0), 256)
    scene = Scene(
        echo_db=np.zeros(grid.shape, np.float32),
        attenuation_db=np.full(grid.shape, 0.7, np.float32),
        specular=np.zeros(grid.shape, np.float32),
        beam_loss_db=np.zeros(grid.num_beams, np.float32),
    )
    settings = Settings(8.0, 60.0, looks, 1.6, 19.0, tgc_db=0.7, floor_db=-200.0, side_lobe_db=-200.0)
    return envelope(np.random.default_rng(0), grid, scene, settings)


@pytest.mark.parametrize(("preset", "scanner"), BOTH_BREASTS_AND_OTHERS)
def test_same_arguments_give_the_same_bits(preset: str, scanner: str) -> None:
    first, second = (simulate(preset, 5, 2, 128, scanner=scanner) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)
    assert (first.label, first.prompt, first.facts) == (second.label, second.prompt, second.facts)


@pytest.mark.parametrize("preset", PRESETS)
def test_another_index_or_seed_gives_another_picture(preset: str) -> None:
    image = simulate(preset, 5, 2, 64).image
    assert not np.array_equal(image, simulate(preset, 5, 3, 64).image)
    assert not np.array_equal(image, simulate(preset, 6, 2, 64).image)


@pytest.mark.parametrize(("preset", "scanner"), BOTH_BREASTS_AND_OTHERS)
@pytest.mark.parametrize("size", [64, 128, 256])
def test_shapes_types_and_classes(preset: str, scanner: str, size: int) -> None:
    for index in range(3):
        made = simulate(preset, 1, index, size, scanner=scanner)
        assert made.image.shape == made.mask.shape == (size, size)
        assert made.image.dtype == made.mask.dtype == np.uint8
        assert set(np.unique(made.mask)) <= {0, *MASK_CLASSES[preset]}
        # Dark enough to show structure, bright enough to show tissue: neither empty nor saturated.
        assert 20 < made.image.mean() < 180
        assert made.image.max() > 200
        assert made.prompt.startswith(f"simulated {preset} ultrasound")
        assert {"subtype", "depth_mm", "frequency_mhz", "dynamic_range_db", "looks"} <= made.facts.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_anatomy_does_not_depend_on_size(preset: str) -> None:
    for index in range(3):
        small, large = simulate(preset, 2, index, 64), simulate(preset, 2, index, 256)
        assert (small.prompt, small.facts) == (large.prompt, large.facts)
        # Nearest-pixel labels of four times coarser pixels may differ along borders only.
        assert (small.mask != large.mask[2::4, 2::4]).mean() < 0.05


def test_every_class_of_the_heart_is_there() -> None:
    for index in range(5):
        assert set(np.unique(simulate("cardiac", 0, index, 64).mask)) == {0, 1, 2, 3}


def test_breast_classes_are_balanced(breasts: list[Simulated]) -> None:
    labels = [made.label for made in breasts]
    for label in ("normal", "benign", "malignant"):
        # A third of 300, give or take 4 standard deviations (8.2) of a binomial draw.
        assert abs(labels.count(label) - 100) < 33
    benign = [made for made in breasts if made.label == "benign"]
    cysts = sum("cyst" in str(made.facts["subtype"]) for made in benign)
    # 40%, give or take 4 standard deviations (4.9%) of 100 draws.
    assert 0.2 < cysts / len(benign) < 0.6


def test_a_lesion_is_marked_unless_the_breast_is_normal(breasts: list[Simulated]) -> None:
    for made in breasts:
        assert made.mask.any() == (made.label != "normal")


def test_prompts_are_few(breasts: list[Simulated]) -> None:
    # All that breast can say: 6 normal, 8 benign, 8 malignant.
    assert len({made.prompt for made in breasts}) <= 22


def test_single_look_speckle_is_fully_developed() -> None:
    amplitude = homogeneous_envelope(looks=1)
    # Rayleigh: sqrt(pi / (4 - pi)) = 1.913. About 10,000 independent speckles leave a standard error of 0.02.
    assert amplitude.mean() / amplitude.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), abs=0.08)
    # The point-spread function keeps power: 0 dB of tissue is 1, within the same error of the mean of an exponential.
    assert (amplitude**2).mean() == pytest.approx(1, abs=0.05)


def test_looks_smooth_speckle() -> None:
    amplitude = homogeneous_envelope(looks=4)
    # Root of a mean of four exponentials: Nakagami of m = 4, SNR 3.9; the same relative error as for one look.
    assert amplitude.mean() / amplitude.std() == pytest.approx(3.94, abs=0.16)


def test_attenuation_is_compensated_and_shadows() -> None:
    grid = BeamGrid.for_picture(FlatArray(19.0, 0.0, 40.0), 64)
    attenuation = np.full(grid.shape, 0.7, np.float32)
    half = grid.num_beams // 2
    attenuation[: grid.num_ranges // 4, :half] = 1.2
    zeros = np.zeros(grid.shape, np.float32)
    scene = Scene(zeros, attenuation, zeros, np.zeros(grid.num_beams, np.float32))
    settings = Settings(8.0, 60.0, 8, 1.6, 20.0, tgc_db=0.7, floor_db=-200.0, side_lobe_db=-200.0)
    power = envelope(np.random.default_rng(0), grid, scene, settings)[grid.num_ranges // 2 :] ** 2
    # 0.5 dB/cm/MHz too much, there and back, over 1 cm at 8 MHz: 8 dB; speckle leaves about 0.2 dB.
    loss_db = 10 * np.log10(power[:, half + 5 : -5].mean() / power[:, 5 : half - 5].mean())
    assert loss_db == pytest.approx(8, abs=0.7)


def around_and_behind(made: Simulated) -> tuple[float, float, float]:
    """Return the mean grey inside the lesion, around it, and of the strip behind it less its neighbours."""
    image, inside = made.image.astype(float), made.mask == 1
    rows, columns = np.nonzero(inside)
    low, high = np.percentile(columns, (30, 70)).astype(int)
    width = columns.max() - columns.min()
    ring = np.zeros_like(inside)
    ring[rows.min() : rows.max(), max(columns.min() - 8, 0) : columns.max() + 8] = True
    strip = slice(rows.max() + 3, rows.max() + 15)
    behind = image[strip, low : high + 1].mean()
    beside = np.abs(np.arange(image.shape[1]) - columns.mean()) > 0.75 * width
    return image[inside].mean(), image[ring & ~inside].mean(), behind - image[strip][:, beside].mean()


def test_cysts_are_dark_and_shine_behind() -> None:
    made = [simulate("breast", 4, index, 128) for index in range(90)]
    cysts = [around_and_behind(one) for one in made if one.facts["subtype"] == "cyst"]
    assert len(cysts) > 3
    for inside, around, _ in cysts:
        assert inside < around - 40
    assert np.mean([behind for *_, behind in cysts]) > 10
    shadowed = [one for one in made if "shadowing" in str(one.facts.get("attributes", "")).split(", ")]
    assert len(shadowed) > 10
    assert np.mean([around_and_behind(one)[2] for one in shadowed]) < -15


@pytest.mark.parametrize("preset", ["trapezoid", "cardiac", "fetal"])
def test_outside_the_field_is_black(preset: str) -> None:
    for index in range(4):
        made = (
            simulate("breast", 0, index, 128, scanner=preset)
            if preset == "trapezoid"
            else simulate(preset, 0, index, 128)
        )
        corners = np.zeros((128, 128), bool)
        corners[:12, :12] = corners[:12, -12:] = True
        assert not made.image[corners].any()
        outside = np.ones((128, 128), bool)
        for row, line in enumerate(made.image):
            lit = np.flatnonzero(line)
            if len(lit):
                outside[row, lit[0] : lit[-1] + 1] = False
        assert not made.mask[outside].any()


def test_the_trapezoid_scanner_looks_different() -> None:
    linear, trapezoid = (
        np.mean([(simulate("breast", 0, index, 64, scanner=scanner).image == 0).mean() for index in range(12)])
        for scanner in ("linear", "trapezoid")
    )
    assert linear < 0.1
    assert trapezoid > 0.2


@pytest.mark.parametrize(
    "geometry", [FlatArray(19.0, 0.0, 38.0), FlatArray(13.0, 0.3, 40.0), CurvedArray(50.0, 0.55, 120.0)], ids=str
)
def test_beams_invert_points(geometry: Geometry) -> None:
    range_mm, beam = np.meshgrid(np.linspace(1, 35, 7), np.linspace(-1, 1, 5))
    again_mm, same_beam = geometry.beams(*geometry.points(range_mm, beam))
    np.testing.assert_allclose(again_mm, range_mm, atol=1e-9)
    np.testing.assert_allclose(same_beam, beam, atol=1e-9)


def test_random_fields_have_unit_variance() -> None:
    grid = BeamGrid.for_picture(FlatArray(19.0, 0.0, 38.0), 64)
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng, grid, 2.0, 3.0) for _ in range(40)])
    # 40 fields of about 50 independent patches: a standard error of 3% of the variance.
    assert fields.var() == pytest.approx(1, abs=0.12)
    assert fields.mean() == pytest.approx(0, abs=0.12)


@pytest.mark.parametrize(
    ("preset", "seed", "size", "scanner", "text"),
    [
        ("liver", 0, 64, "linear", "preset='liver' is not simulated; there are breast, cardiac, fetal"),
        ("breast", 0, 63, "linear", "size=63 pixels is out of range; needed: 64 to 512"),
        ("breast", 0, 513, "linear", "size=513 pixels is out of range; needed: 64 to 512"),
        ("breast", -1, 64, "linear", "seed=-1, index=0: both must be 0 or more"),
        (
            "breast",
            0,
            64,
            "convex",
            "scanner='convex' does not exist for preset='breast'; there is linear and trapezoid",
        ),
        ("fetal", 0, 64, "trapezoid", "scanner='trapezoid' does not exist for preset='fetal'; there is linear"),
    ],
)
def test_wrong_arguments_are_told(preset: str, seed: int, size: int, scanner: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        simulate(preset, seed, 0, size, scanner=scanner)
