"""Simulated images with faults planted in them, as people and scanners leave them in real databases."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from data.databases import ManifestFile
from data.simulate import simulate

Picture = Image.Image


def picture(index: int, size: int = 256, preset: str = "breast", seed: int = 5) -> tuple[Picture, Picture]:
    """Return a simulated image and its mask, 0 and 255; every index another one."""
    made = simulate(preset, seed, index, size)
    return Image.fromarray(made.image), Image.fromarray((255 * (made.mask != 0)).astype(np.uint8))


def smaller(image: Picture) -> Picture:
    return image.resize((round(0.7 * image.width), round(0.7 * image.height)), Image.Resampling.LANCZOS)


def compressed(image: Picture) -> Picture:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=60)
    return Image.open(io.BytesIO(content.getvalue())).convert("L")


def brighter(image: Picture) -> Picture:
    return ImageEnhance.Brightness(image).enhance(1.2)


def mirrored(image: Picture) -> Picture:
    return ImageOps.mirror(image)


def in_a_frame(image: Picture) -> Picture:
    """The screen around the image: black, with the scanner's words in it."""
    screen = Image.new("L", (image.width + 60, image.height + 40))
    screen.paste(image, (20, 30))
    lettered(screen, (22, 6), size=12)
    return screen


def lettered(image: Picture, place: tuple[int, int], size: int = 14) -> Picture:
    """`image` itself, with words drawn into it."""
    ImageDraw.Draw(image).text(place, "RT BREAST 12", fill=225, font=ImageFont.load_default(size))
    return image


def with_callipers(image: Picture) -> Picture:
    """Two crosses of one-pixel lines, as measuring leaves them."""
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    for x, y in ((image.width // 3, image.height // 2), (image.width // 2, image.height // 2 + 9)):
        draw.line((x - 5, y, x + 5, y), fill=255)
        draw.line((x, y - 5, x, y + 5), fill=255)
    return marked


def with_doppler(image: Picture) -> Picture:
    """A box of red and blue flow."""
    coloured = image.convert("RGB")
    side = image.width // 6
    for shift, colour in ((0, (220, 40, 30)), (side, (30, 60, 220))):
        flow = Image.new("RGB", (side, side), colour)
        coloured.paste(flow, (image.width // 3 + shift, image.height // 3))
    return coloured


COPIES: dict[str, Callable[[Picture], Picture]] = {
    "smaller": smaller,
    "compressed": compressed,
    "brighter": brighter,
    "mirrored": mirrored,
    "in a frame": in_a_frame,
    "mirrored, smaller": lambda image: smaller(mirrored(image)),
}


def write_table(folder: Path, rows: list[dict[str, str]]) -> ManifestFile:
    """Return the database of a CSV of these rows; prompts are filled in."""
    import pandas as pd

    pd.DataFrame([{"prompts": "a breast", "label": "benign", **row} for row in rows]).to_csv(
        folder / "table.csv", index=False
    )
    return ManifestFile(path=folder / "table.csv")
