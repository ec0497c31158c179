import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.hints import CLASS_COLOURS, hint_images
from sampler.errors import SamplerError
from sampler.manifest import PaletteClass
from sampler.masks import hint_image, mask_picture, read_mask, read_masks

NAMES = ("background", "lesion", "left ventricle", "myocardium")
PALETTE = [PaletteClass(number, name, CLASS_COLOURS[number]) for number, name in enumerate(NAMES)]
SIDE = 16


def numbers() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:9, 3:12], mask[10:14, 2:5], mask[0, 15] = 1, 3, 2
    return mask


def read(picture: Image.Image, **more: Any) -> np.ndarray:
    content = io.BytesIO()
    picture.save(content, "PNG")
    content.seek(0)
    return read_mask(content, PALETTE, SIDE, name="mask.png", **more)


def colours() -> np.ndarray:
    return np.array(CLASS_COLOURS, np.uint8)[numbers()]


def refusal(picture: Image.Image, **more: Any) -> str:
    with pytest.raises(SamplerError) as refused:
        read(picture, **more)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_numbers_and_colours_are_the_same_mask() -> None:
    assert np.array_equal(read(Image.fromarray(numbers())), numbers())
    assert np.array_equal(read(Image.fromarray(colours())), numbers())
    written = mask_picture(numbers(), PALETTE)
    assert np.array_equal(read(written), numbers())
    assert np.array_equal(read(written.convert("RGB")), numbers())
    # an editor that numbers colours as it likes
    renumbered = Image.frombytes("P", (SIDE, SIDE), (numbers() + 100).tobytes())
    renumbered.putpalette([0] * 300 + [level for colour in CLASS_COLOURS[:4] for level in colour])
    assert np.array_equal(read(renumbered), numbers())


def test_transparent_is_background() -> None:
    picture = np.dstack([colours(), np.where(numbers() > 0, 255, 0).astype(np.uint8)])
    picture[numbers() == 0, :3] = 77
    assert np.array_equal(read(Image.fromarray(picture)), numbers())
    picture[5, 5, 3] = 100
    assert "mask.png has 1 half-transparent pixels" in refusal(Image.fromarray(picture))


def test_a_square_of_another_size_keeps_its_classes() -> None:
    larger = Image.fromarray(colours()).resize((5 * SIDE, 5 * SIDE), Image.Resampling.NEAREST)
    assert np.array_equal(read(larger), numbers())
    assert "mask.png is 16x8 pixels, needed is a square such as 16x16" in refusal(Image.new("RGB", (16, 8)))


def test_a_colour_that_the_palette_lacks() -> None:
    picture = colours()
    picture[0, :5] = (235, 20, 70)
    line = refusal(Image.fromarray(picture))
    assert "5 pixels of colour #eb1446, which the palette lacks; the nearest is #e6194b (lesion)" in line
    picture[1, 1] = (1, 1, 1)
    assert "#eb1446 (and 1 colours more)" in refusal(Image.fromarray(picture))


def test_a_number_that_the_palette_lacks() -> None:
    mask = numbers()
    mask[0, :7] = 9
    line = refusal(Image.fromarray(mask))
    assert "7 pixels of class 9, which the palette lacks; the nearest is 3 (myocardium)" in line
    assert "0 background, 1 lesion" in line


def test_black_and_white_needs_a_class() -> None:
    white = Image.fromarray(np.where(numbers() == 1, 255, 0).astype(np.uint8))
    assert "--mask-class" in refusal(white)
    assert "--mask-class" in refusal(white.convert("RGB"))
    for mode in ("L", "RGB", "1", "P"):
        assert np.array_equal(read(white.convert(mode), white="myocardium"), 3 * (numbers() == 1))
    assert "no mask class 'tumour'; the classes are 0 background" in refusal(white, white="tumour")


def test_numbers_that_wear_the_colours_of_other_classes_are_not_guessed() -> None:
    picture = mask_picture(numbers(), PALETTE)
    picture.putpalette([*CLASS_COLOURS[0], *CLASS_COLOURS[2], *CLASS_COLOURS[1], *CLASS_COLOURS[3]])
    assert "its numbers and its colours are different classes" in refusal(picture)


def test_what_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(SamplerError, match=r"mask.png cannot be read as a PNG"):
        read_mask(io.BytesIO(b"no picture"), PALETTE, SIDE, name="mask.png")
    assert "mode I;16" in refusal(Image.fromarray(numbers().astype(np.uint16)))
    with pytest.raises(SamplerError, match="there is no mask"):
        read_masks(tmp_path / "none", PALETTE, SIDE, None)
    with pytest.raises(SamplerError, match="holds no PNG"):
        read_masks(tmp_path, PALETTE, SIDE, None)


def test_masks_in_folders_are_for_their_class(tmp_path: Path) -> None:
    for name in ("any.png", "breast/b.png", "breast/benign/c.png", "heart/d.png", "benign/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers()).save(tmp_path / name)
    masks = read_masks(tmp_path, PALETTE, SIDE, None)
    fitting = {str(mask.path) for mask in masks if mask.fits("breast", "benign")}
    assert fitting == {"any.png", "breast/b.png", "breast/benign/c.png", "benign/e.png"}
    assert {str(mask.path) for mask in masks if mask.fits("heart", "systole")} == {"any.png", "heart/d.png"}
    assert all(np.array_equal(mask.numbers_HW, numbers()) for mask in masks)
    (alone,) = read_masks(tmp_path / "breast" / "b.png", PALETTE, SIDE, None)
    assert alone.fits("heart", "systole"), "a mask that is given by itself is for all"


def test_hint_is_that_of_training() -> None:
    assert np.array_equal(hint_image(numbers(), PALETTE), hint_images(numbers()[None])[0])
