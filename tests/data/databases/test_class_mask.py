"""Masks that say their classes by transparency or colour become class numbers."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.databases.class_mask import class_mask, from_alpha, from_colours, from_painted
from data.databases.derived import Derived


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


def test_a_mask_of_another_kind_or_none_is_a_fault(tmp_path: Path) -> None:
    source, path = tmp_path / "source.png", tmp_path / "mask.png"
    Image.fromarray(np.full((2, 2), 9, np.uint8)).save(source)
    reason = f"{source} has no transparent pixel; needed a mask in its alpha channel: unpack the download again"
    assert class_mask(path, source, from_alpha) == Derived(path, reason)
    source.write_bytes(b"<html>")
    assert class_mask(path, source, from_alpha) == Derived(
        path, f"{source} cannot be decoded: no PNG, JPEG, BMP or TIFF"
    )
    source.unlink()
    assert class_mask(path, source, from_alpha) == Derived(path, f"{source} cannot be read: No such file or directory")
    assert not path.exists()
