"""A sheet of generated images to judge at one look: black, as images are read; a group for each class or prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 28, 10
# Images are enlarged by a whole number until they have this many pixels a side.
MIN_SIDE, MAX_SIDE = 160, 256
LINE = 20
BACKGROUND, INK, FAINT, RULE, WARNING = (13, 16, 20), (232, 236, 240), (138, 149, 161), (38, 45, 54), (240, 180, 80)


@dataclass(frozen=True)
class Tile:
    """An image of the sheet. title: of its group. caption: under it. mask: shown small beside its caption, or None."""

    title: str
    caption: str
    image: Image.Image
    mask: Image.Image | None = None


def contact_sheet(tiles: Sequence[Tile], heading: str, footer: str, columns: int) -> Image.Image:
    """Return the sheet, RGB; its groups in the order of `tiles`, at most `columns` images in a row."""
    side = _side(tiles[0].image.width)
    groups: dict[str, list[Tile]] = {}
    for tile in tiles:
        groups.setdefault(tile.title, []).append(tile)
    across = min(columns, max(len(members) for members in groups.values()))
    large, normal, small = (ImageFont.load_default(size) for size in (20, 15, 12))
    width = 2 * MARGIN + max(across * (side + GAP) - GAP, 460)
    titles = {title: _wrapped(title, normal, width - 2 * MARGIN) for title in groups}
    heading_lines = _wrapped(heading, large, width - 2 * MARGIN)
    footer_lines = _wrapped(footer, normal, width - 2 * MARGIN)
    mask_side = side // 2 if any(tile.mask for tile in tiles) else 0
    below = max(mask_side, LINE) + GAP
    height = MARGIN + 28 * len(heading_lines) + GAP
    for title, members in groups.items():
        height += LINE * len(titles[title]) + GAP + -(-len(members) // across) * (side + below + GAP) + GAP
    sheet = Image.new("RGB", (width, height + LINE * len(footer_lines) + GAP + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for line in heading_lines:
        draw.text((MARGIN, y), line, INK, large)
        y += 28
    y += GAP
    for title, members in groups.items():
        for line in titles[title]:
            draw.text((MARGIN, y), line, INK, normal)
            y += LINE
        y += GAP
        for start in range(0, len(members), across):
            for place, tile in enumerate(members[start : start + across]):
                x = MARGIN + place * (side + GAP)
                sheet.paste(_fitted(tile.image, side, Image.Resampling.LANCZOS), (x, y))
                if tile.mask is not None:
                    sheet.paste(_fitted(tile.mask, mask_side, Image.Resampling.NEAREST), (x, y + side + 4))
                    room, left = side - mask_side - 8, x + mask_side + 8
                    lines = [part for piece in tile.caption.split(", ") for part in _wrapped(piece, small, room)]
                    draw.multiline_text((left, y + side + 6), "\n".join(lines), FAINT, small, spacing=4)
                else:
                    draw.text((x, y + side + 5), _wrapped(tile.caption, small, side)[0], FAINT, small)
            y += side + below + GAP
        y += GAP
    draw.line((MARGIN, y, width - MARGIN, y), RULE)
    for number, line in enumerate(footer_lines):
        draw.text((MARGIN, y + GAP + number * LINE), line, WARNING, normal)
    return sheet


def _side(pixels: int) -> int:
    return min(MAX_SIDE, pixels * max(1, -(-MIN_SIDE // pixels)))


def _fitted(picture: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    picture = picture.convert("RGB")
    return picture if picture.size == (side, side) else picture.resize((side, side), how)


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Return `text` in lines that fit; a word that does not is broken, so that nothing is cut off."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
