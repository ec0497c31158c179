"""A labelled sheet of images: a row for each source of them, a column for each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from evaluation.sheet import BACKGROUND, FAINT, GAP, INK, LINE_HEIGHT, MARGIN, TITLE_WIDTH, wrapped

CAPTION_LINES = 4


@dataclass(frozen=True)
class SheetRow:
    """title: what the images are; note: a few words more; images: uint8 [N, H, W] or [N, H, W, 3]."""

    title: str
    note: str
    images: NDArray[np.uint8]


def contact_sheet(rows: Sequence[SheetRow], captions: Sequence[str], heading: str, footer: str) -> Image.Image:
    """Return the sheet. captions: one per column, in up to four lines. All images have the first one's size."""
    height, width = rows[0].images.shape[1:3]
    top = MARGIN + 2 * LINE_HEIGHT + CAPTION_LINES * LINE_HEIGHT
    sheet = Image.new(
        "RGB",
        (
            2 * MARGIN + TITLE_WIDTH + len(captions) * (width + GAP) - GAP,
            top + len(rows) * (height + GAP) + LINE_HEIGHT + MARGIN,
        ),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    large, normal, small = (ImageFont.load_default(size) for size in (17, 14, 12))
    draw.text((MARGIN, MARGIN - 4), heading, INK, large)
    for column, caption in enumerate(captions):
        left = MARGIN + TITLE_WIDTH + column * (width + GAP)
        lines = wrapped(caption, small, width)[:CAPTION_LINES]
        below = top - LINE_HEIGHT * len(lines) - 4
        draw.multiline_text((left, below), "\n".join(lines), FAINT, small, spacing=4)
    for number, row in enumerate(rows):
        y = top + number * (height + GAP)
        draw.text((MARGIN, y + height // 2 - 22), row.title, INK, normal)
        note = "\n".join(wrapped(row.note, small, TITLE_WIDTH - GAP))
        draw.multiline_text((MARGIN, y + height // 2 - 2), note, FAINT, small, spacing=3)
        for column, image in enumerate(row.images):
            sheet.paste(Image.fromarray(image).convert("RGB"), (MARGIN + TITLE_WIDTH + column * (width + GAP), y))
    draw.text((MARGIN, top + len(rows) * (height + GAP) + 4), footer, FAINT, small)
    return sheet
