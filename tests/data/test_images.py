"""Every file gives its picture or a DataError that names it."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.errors import DataError
from data.images import class_numbers, decode, mask_values


def png() -> bytes:
    content = io.BytesIO()
    grey = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
    Image.fromarray(grey).save(content, format="PNG")
    return content.getvalue()


WHOLE = png()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, len(WHOLE)), place=st.integers(0, len(WHOLE) - 1), flip=st.integers(0, 255))
def test_a_broken_file_is_refused_or_read(tmp_path: Path, cut: int, place: int, flip: int) -> None:
    """Whatever is cut off or flipped, no other error comes out."""
    content = bytearray(WHOLE)
    content[place] ^= flip
    path = tmp_path / "x.png"
    path.write_bytes(content[:cut])
    with contextlib.suppress(DataError):
        decode(path)


def test_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(WHOLE[: len(WHOLE) // 2])
    with pytest.raises(DataError, match=re.escape(f"{path} cannot be decoded: ")):
        decode(path)


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} cannot be decoded: no PNG, JPEG, BMP or TIFF$"):
        decode(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=f"^{re.escape(str(tmp_path))}/x.png cannot be read: No such file or directory$"
    ):
        decode(tmp_path / "x.png")


def test_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="has pixels of mode I;16, needed 8 bits a channel: convert it"):
        decode(tmp_path / "x.png")


def test_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(WHOLE)
    _, sha256 = decode(path)
    path.write_bytes(WHOLE + b" ")
    message = f"{path} has changed since the manifest was made: run `sonoshard prepare` again"
    with pytest.raises(DataError, match=re.escape(message)):
        decode(path, sha256)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_a_binary_mask_in_any_mode(mode: str) -> None:
    mask = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert(mode)
    assert mask_values(mask, {255: "lesion"}).tolist() == [[0, 255]]


def test_a_binary_mask_is_cut_at_128() -> None:
    mask = Image.fromarray(np.array([[0, 3, 127, 128, 250, 255]], dtype=np.uint8))
    assert mask_values(mask, {255: "lesion"}).tolist() == [[0, 0, 0, 255, 255, 255]]


def test_a_palette_mask_keeps_its_numbers() -> None:
    mask = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    assert mask.mode == "P"
    assert mask_values(mask, {1: "a", 2: "b"}).tolist() == [[0, 1, 2]]


def test_masks_are_united_in_the_palette() -> None:
    palette = ("background", "lesion", "cyst")
    masks = [Image.fromarray(np.array([values], dtype=np.uint8)) for values in ([0, 7, 0, 9], [7, 0, 0, 0])]
    assert class_numbers(masks, {7: "cyst", 9: "lesion"}, palette).tolist() == [[2, 2, 0, 1]]
