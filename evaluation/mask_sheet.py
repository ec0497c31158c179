"""A picture to judge by eye whether generated images follow their masks."""

# N images, H W height and width in pixels

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from data.hints import LEVELS, coloured
from evaluation.mask_agreement import dice
from evaluation.masked_images import MaskedImages
from evaluation.pictures import enlarged
from evaluation.sheet import BACKGROUND, FAINT, GAP, INK, LINE_HEIGHT, MARGIN, TITLE_WIDTH, wrapped

# Images are enlarged by a whole number until they have this many pixels a side, so that an outline is finer than them.
MIN_SIDE = 192
OUTLINE_PIXELS = 2
DOT_PIXELS = 3
TITLES = (
    ("mask", "what the image was drawn from"),
    ("generated", ""),
    ("found in it", "solid: by the segmenter; white dots: the mask; Dice below"),
)


def mask_sheet(
    generated: MaskedImages,
    predicted_NHW: NDArray[np.uint8],
    palette: Sequence[str],
    captions: Sequence[str],
    heading: str,
    footer: str,
) -> Image.Image:
    """Return a sheet of three rows: masks, generated images, those with what was found in them.

    generated: a column each, with the masks they were drawn from. predicted_NHW: the segmenter's class numbers of them.
    captions: one per column, a line each. Colours are those of the hints that `encode` writes.
    """
    num, height, width = generated.images_NHW.shape
    scale = max(1, math.ceil(MIN_SIDE / max(height, width)))
    shown_height, shown_width = scale * height, scale * width
    large, normal, small = (ImageFont.load_default(size) for size in (17, 14, 12))
    masks_NHW = generated.class_numbers_NHW
    rows = (
        [
            Image.fromarray(coloured(mask)).resize((shown_width, shown_height), Image.Resampling.NEAREST)
            for mask in masks_NHW
        ],
        [enlarged(image, scale) for image in generated.images_NHW],
        [
            _outlined(enlarged(image, scale), predicted, mask, scale)
            for image, predicted, mask in zip(generated.images_NHW, predicted_NHW, masks_NHW, strict=True)
        ],
    )
    top = MARGIN + 4 * LINE_HEIGHT
    tops = [top + row * (shown_height + GAP) for row in range(len(rows))]
    bottom = tops[-1] + shown_height + LINE_HEIGHT
    size = (2 * MARGIN + TITLE_WIDTH + num * (shown_width + GAP) - GAP, bottom + 2 * LINE_HEIGHT + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), heading, INK, large)
    numbers = [int(number) for number in np.union1d(masks_NHW, predicted_NHW) if number != 0]
    _draw_legend(
        draw, [(palette[number], _colour(number)) for number in numbers], (MARGIN, MARGIN + LINE_HEIGHT + 4), small
    )
    for row, (y, (title, note), images) in enumerate(zip(tops, TITLES, rows, strict=True)):
        draw.text((MARGIN, y + shown_height // 2 - 22), title, INK, normal)
        lines = "\n".join(wrapped(note, small, TITLE_WIDTH - GAP))
        draw.multiline_text((MARGIN, y + shown_height // 2 - 2), lines, FAINT, small, spacing=3)
        for column, image in enumerate(images):
            left = MARGIN + TITLE_WIDTH + column * (shown_width + GAP)
            sheet.paste(image, (left, y))
            if row == 0:
                draw.text((left, y - LINE_HEIGHT), _cut(captions[column], small, shown_width), FAINT, small)
            if row == 2:
                agreement = _dice_by_colour(predicted_NHW[column], masks_NHW[column])
                _draw_legend(draw, agreement, (left, y + shown_height + 1), small)
    draw.text((MARGIN, bottom + 8), footer, FAINT, small)
    return sheet


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = LEVELS[number].tolist()
    return red, green, blue


def _outlined(
    picture: Image.Image, predicted_HW: NDArray[np.uint8], wanted_HW: NDArray[np.uint8], scale: int
) -> Image.Image:
    """Return the picture with the outlines of predicted classes, solid, and of wanted ones, dotted."""
    pixels = np.array(picture)
    for mask_HW, is_wanted in ((predicted_HW, False), (wanted_HW, True)):
        large = mask_HW.repeat(scale, axis=0).repeat(scale, axis=1)
        for number in np.unique(large[large > 0]):
            inside = large == number
            outline = inside & ~binary_erosion(inside, iterations=OUTLINE_PIXELS)
            if is_wanted:
                rows, columns = np.indices(large.shape)
                is_dot = (rows // DOT_PIXELS + columns // DOT_PIXELS) % 2 == 0
                pixels[outline & is_dot] = 255
            else:
                pixels[outline] = _colour(int(number))
    return Image.fromarray(pixels)


def _dice_by_colour(
    predicted_HW: NDArray[np.uint8], wanted_HW: NDArray[np.uint8]
) -> list[tuple[str, tuple[int, int, int]]]:
    numbers = [int(number) for number in np.union1d(predicted_HW, wanted_HW) if number != 0]
    return [(f"{dice(predicted_HW, wanted_HW, number):.2f}", _colour(number)) for number in numbers]


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    words: Sequence[tuple[str, tuple[int, int, int]]],
    place: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Write words in a line, each after a square of its colour."""
    left, y = float(place[0]), place[1]
    for name, colour in words:
        draw.rectangle((left, y + 3, left + 10, y + 13), fill=colour)
        draw.text((left + 15, y), name, FAINT, font)
        left += 15 + font.getlength(name) + 12


def _cut(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """Return a text, or as much of its beginning as fits `width` pixels with dots after it."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
