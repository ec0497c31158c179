"""The simulated database makes each image once, the same whenever it is asked."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from data.databases import AnyDatabase, SimulatedDatabase
from data.databases.simulated import FEW_IMAGES
from data.images import decode
from data.simulate import MASK_CLASSES, PRESETS, simulate


def test_the_presets_are_those_of_the_simulator() -> None:
    assert get_args(SimulatedDatabase.model_fields["preset"].annotation) == tuple(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_row_is_what_the_simulator_made(preset: str, tmp_path: Path) -> None:
    database = TypeAdapter(AnyDatabase).validate_python(
        {"kind": "simulated", "preset": preset, "count": 3, "size": 64, "seed": 5}
    )
    rows = list(database.rows(tmp_path))
    made = simulate(preset, 5, 2, 64)
    image, mask = decode(rows[2].image)[0], decode(rows[2].masks[0])[0]
    assert image.tobytes() == made.image.tobytes()
    assert mask.tobytes() == made.mask.tobytes()
    assert (rows[2].label, rows[2].prompts) == (made.label, (made.prompt,))
    assert rows[2].mask_classes == MASK_CLASSES[preset]
    assert [row.patient for row in rows] == ["000000", "000000", "000001"]
    assert rows[2].flags == ("simulated",)


def test_run_again_it_writes_nothing_new(tmp_path: Path) -> None:
    first = list(SimulatedDatabase(count=3, size=64).rows(tmp_path))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    more = list(SimulatedDatabase(count=4, size=64).rows(tmp_path))
    assert more[:3] == first
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(list(tmp_path.rglob("*.png"))) == 8


def test_an_image_that_was_half_made_is_made_again(tmp_path: Path) -> None:
    rows = list(SimulatedDatabase(count=2, size=64).rows(tmp_path))
    whole = rows[1].image.read_bytes()
    rows[1].image.unlink()  # killed between the mask and the image
    assert list(SimulatedDatabase(count=2, size=64).rows(tmp_path)) == rows
    assert rows[1].image.read_bytes() == whole


def test_many_images_made_by_several_processes_are_the_same(tmp_path: Path) -> None:
    made_by_one = SimulatedDatabase(count=FEW_IMAGES - 1, size=64)
    images = {row.id: row.image.read_bytes() for row in made_by_one.rows(tmp_path / "one")}
    database = SimulatedDatabase(count=FEW_IMAGES + 2, size=64)
    rows = list(database.rows(tmp_path / "several"))
    assert [row.id for row in rows] == [f"{index:06d}" for index in range(database.count)]
    assert {row.id: row.image.read_bytes() for row in rows if row.id in images} == images
    gone = rows[5].image
    gone.unlink()
    assert list(database.rows(tmp_path / "several")) == rows
    assert gone.read_bytes() == images["000005"]


def test_other_settings_lie_elsewhere(tmp_path: Path) -> None:
    settings: list[dict[str, int | str]] = [
        {"seed": 0},
        {"seed": 1},
        {"size": 80},
        {"preset": "fetal"},
        {"scanner": "trapezoid"},
    ]
    folders = set()
    for setting in settings:
        database = SimulatedDatabase.model_validate({"count": 1, "size": 64, **setting})
        folders |= {row.image.parent for row in database.rows(tmp_path)}
    assert len(folders) == len(settings)


def test_a_scanner_that_a_preset_lacks_is_refused_with_the_config() -> None:
    with pytest.raises(ValidationError, match="scanner trapezoid with preset fetal, needed linear"):
        SimulatedDatabase(count=1, preset="fetal", scanner="trapezoid")
