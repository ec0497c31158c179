"""Masks that say their classes by transparency or colour become class numbers."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from data.databases.class_mask import class_mask, from_alpha, from_colours, from_painted


def test_smooth_outlines_belong_to_the_nearer_colour() -> None:
    row = np.array([[(0, 0, 0), (0, 90, 0), (0, 170, 0), (20, 240, 9), (200, 30, 0)]], np.uint8)
    classify = from_colours({(0, 255, 0): 1, (255, 0, 0): 2})
    assert classify(Image.fromarray(row)).tolist() == [[0, 0, 1, 1, 2]]


def test_alpha_counts_whatever_the_colour() -> None:
    row = np.array([[(255, 255, 255, 0), (0, 0, 0, 255), (9, 9, 9, 200), (9, 9, 9, 100)]], np.uint8)
    assert from_alpha(Image.fromarray(row)).tolist() == [[0, 1, 1, 0]]


def test_painted_is_not_black_in_every_mode() -> None:
    values = np.array([[0, 1, 2]], np.uint8)
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 0, 64])
    for picture in (palette, palette.convert("RGB"), palette.convert("RGBA"), Image.fromarray(values)):
        assert from_painted(picture).tolist() == [[0, 1, 1]]


def test_a_mask_is_made_anew_only_if_its_source_is_newer(tmp_path: Path) -> None:
    source, path = tmp_path / "source.png", tmp_path / "made" / "mask.png"
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(source)
    assert class_mask(path, source, from_painted) == path
    made = path.stat().st_mtime_ns
    assert class_mask(path, source, from_painted).stat().st_mtime_ns == made
    Image.fromarray(np.array([[1, 1]], np.uint8)).save(source)
    os.utime(source, ns=(made + 1, made + 1))
    with Image.open(class_mask(path, source, from_painted)) as mask:
        assert np.asarray(mask).tolist() == [[1, 1]]
