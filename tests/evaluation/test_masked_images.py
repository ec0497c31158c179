"""A split is read as `encode` reads it; generated images keep their masks; the sheet shows what it is given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.databases import SimulatedDatabase
from data.encode import EncodeConfig
from data.errors import DataError
from data.hints import CLASS_COLOURS
from data.manifest import PALETTE, Manifest
from data.prepare import PrepareConfig, prepare
from data.preprocessing import hint_of, picture_of
from evaluation.mask_sheet import mask_sheet
from evaluation.masked_images import MaskedImages, grey, read_rows

RESOLUTION = 48


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("prepared")
    databases = {
        preset: SimulatedDatabase(preset=preset, count=24, size=64, seed=3) for preset in ("breast", "cardiac")
    }
    config = PrepareConfig(validation_fraction=0.2, test_fraction=0.2)
    prepare(databases, config, folder / "manifest.parquet", folder / "workspace")
    return Manifest.read(folder / "manifest.parquet")


def test_rows_are_read_as_encode_sees_them(manifest: Manifest) -> None:
    config = EncodeConfig(resize="crop")
    rows = [row for row in manifest.rows if row.split == "test"]
    found = read_rows(rows, manifest.palette, config, RESOLUTION)
    assert found.ids == tuple(row.id for row in rows)
    assert found.clusters == tuple(row.cluster for row in rows)
    assert {id_.split("/")[0] for id_ in found.ids} == {"breast", "cardiac"}
    for place, row in enumerate(rows):
        assert np.array_equal(found.images_NHW[place], np.asarray(picture_of(row, RESOLUTION, config.resize))[..., 0])
        hint = np.asarray(hint_of(row, manifest.palette, RESOLUTION, config.resize))
        assert np.array_equal(found.class_numbers_NHW[place], hint)
    assert PALETTE.index("left ventricle") in found.class_numbers_NHW
    assert PALETTE.index("lesion") in found.class_numbers_NHW


def test_generated_images_keep_the_masks_and_become_grey(manifest: Manifest) -> None:
    rows = [row for row in manifest.rows if row.split == "test"]
    real = read_rows(rows, manifest.palette, EncodeConfig(), RESOLUTION)
    in_colour = np.stack([real.images_NHW] * 3, axis=-1)
    again = real.redrawn(in_colour)
    assert np.array_equal(again.images_NHW, real.images_NHW)
    assert again.class_numbers_NHW is real.class_numbers_NHW
    assert real.at(np.array([2, 0])).ids == (real.ids[2], real.ids[0])
    assert np.array_equal(real.at(np.array([2])).class_numbers_NHW, real.class_numbers_NHW[2:3])
    assert grey(np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]], np.uint8)).tolist() == [[[76, 150, 29]]]
    with pytest.raises(DataError, match=r"images have shape \(1, 48, 48\), needed that of their masks"):
        real.redrawn(in_colour[:1])


def shown(sheet: NDArray[np.uint8], colour: tuple[int, ...]) -> int:
    return int((sheet == np.array(colour, np.uint8)).all(axis=-1).sum())


def test_the_sheet_shows_masks_outlines_and_images(tmp_path: Path) -> None:
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 20:40, 20:40] = 1
    predicted = np.roll(mask, 12, axis=2)
    generated = MaskedImages(np.full_like(mask, 90), mask, ("a",), ("a",))
    arguments: Any = (PALETTE, ["caption " * 30], "heading", "footer")
    sheet = np.asarray(mask_sheet(generated, predicted, *arguments))
    # Enlarged three times to 192 pixels.
    assert shown(sheet, (90, 90, 90)) > 9 * 64 * 64
    lesion = CLASS_COLOURS[1]
    with_outline, without = shown(sheet, lesion), shown(np.asarray(mask_sheet(generated, 0 * mask, *arguments)), lesion)
    assert without >= 9 * 20 * 20
    # Two pixels wide around 60 x 60, in part under dots of the other outline; and the squares before the name and Dice.
    assert 200 < with_outline - without <= 4 * 60 * 2 + 200
