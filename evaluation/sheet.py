"""How our white sheets of images look: measures in pixels, colours, and text in lines."""

from PIL import ImageFont

MARGIN = 16
GAP = 6
TITLE_WIDTH = 150
LINE_HEIGHT = 17
BACKGROUND, INK, FAINT = (250, 250, 250), (20, 20, 20), (110, 110, 110)


def wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return `text` in lines that fit `width` pixels; a word that is wider has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
