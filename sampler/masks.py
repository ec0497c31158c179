"""Masks that steer an image: read from a PNG and checked, or refused with what was found in it."""

# H W image height and width in pixels

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sampler.errors import SamplerError
from sampler.manifest import PaletteClass

MAX_PIXELS = 64 * 2**20
# From here on a grey pixel of a black and white mask is white; JPEG and resizing blur it.
WHITE = 128


@dataclass(frozen=True)
class GivenMask:
    """A mask that was given. path: within the folder that was given. numbers_HW: class numbers, uint8 [H, W]."""

    path: PurePath
    numbers_HW: NDArray[np.uint8]

    def fits(self, database: str, label: str) -> bool:
        """Return whether it may steer an image of a class: the folders that it lies in are named after that."""
        return {database, label}.issuperset(self.path.parent.parts)


def read_mask(
    source: Path | IO[bytes], palette: Sequence[PaletteClass], resolution: int, *, name: str, white: str | None = None
) -> NDArray[np.uint8]:
    """Return the class numbers of a mask, uint8 [H, W], of the size that the model draws.

    Pixels are class numbers (grey or indexed) or the palette's colours (RGB; where it is transparent: class 0). A
    square of another size is resized without mixing classes. white: the class that a black and white mask is of.
    Raises: SamplerError if there is no such class or colour, or the picture is not square; `name` is what it is called.
    """
    try:
        with Image.open(source, formats=("PNG",)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise SamplerError(f"{name} has {opened.width}x{opened.height} pixels, more than any mask needs")
            opened.load()
            picture = opened
    except SamplerError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on broken files
        raise SamplerError(f"{name} cannot be read as a PNG ({error}); masks are PNGs") from error
    if picture.width != picture.height:
        raise SamplerError(
            f"{name} is {picture.width}x{picture.height} pixels, needed is a square such as {resolution}x{resolution}: "
            "pad or crop it, as the image should be"
        )
    if white is not None:
        numbers_HW = _of_white(picture, palette, white)
    elif picture.mode == "P":
        numbers_HW = _of_indexed(picture, palette, name)
    elif picture.mode in ("L", "1"):
        numbers_HW = np.asarray(picture.convert("L"))
        _refuse_numbers(numbers_HW, palette, name)
    elif picture.mode in ("RGB", "RGBA", "LA"):
        numbers_HW = _of_colours(np.asarray(picture.convert("RGBA")), palette, name)
    else:
        raise SamplerError(f"{name} has pixels of mode {picture.mode}; save it with 8 bits a channel")
    if numbers_HW.shape[0] != resolution:
        resized = Image.fromarray(numbers_HW).resize((resolution, resolution), Image.Resampling.NEAREST)
        numbers_HW = np.asarray(resized)
    return np.array(numbers_HW, np.uint8)


def read_masks(path: Path, palette: Sequence[PaletteClass], resolution: int, white: str | None) -> list[GivenMask]:
    """Return the mask of a PNG, or of all PNGs in a folder and its folders, by name. Raises: SamplerError."""
    if not path.exists():
        raise SamplerError(f"there is no mask {path}; give a PNG or a folder of them")
    top, paths = (path, sorted(path.rglob("*.png"))) if path.is_dir() else (path.parent, [path])
    if not paths:
        raise SamplerError(f"{path} holds no PNG; give a PNG or a folder of them")
    return [
        GivenMask(one.relative_to(top), read_mask(one, palette, resolution, name=str(one), white=white))
        for one in paths
    ]


def mask_picture(numbers_HW: NDArray[np.uint8], palette: Sequence[PaletteClass]) -> Image.Image:
    """Return a mask as a picture whose pixels are class numbers and are shown in the palette's colours."""
    picture = Image.fromarray(numbers_HW).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(_colours(palette).tobytes())
    return picture


def hint_image(numbers_HW: NDArray[np.uint8], palette: Sequence[PaletteClass]) -> NDArray[np.float32]:
    """Return the hint that a mask is, as the ControlNet takes it: its colours, float32 [3, H, W] in [0, 1]."""
    return np.ascontiguousarray(np.moveaxis(_colours(palette).astype(np.float32)[numbers_HW] / np.float32(255), -1, 0))


def _colours(palette: Sequence[PaletteClass]) -> NDArray[np.uint8]:
    """Return the colour of each number, uint8 [256, 3]; black where there is no class."""
    colours = np.zeros((256, 3), np.uint8)
    for one in palette:
        colours[one.number] = one.colour
    return colours


def _of_white(picture: Image.Image, palette: Sequence[PaletteClass], white: str) -> NDArray[np.uint8]:
    numbers = [one.number for one in palette if one.name == white]
    if not numbers:
        raise SamplerError(f"there is no mask class {white!r}; the classes are {_listed(palette)}")
    is_white = np.asarray(picture.convert("RGB").convert("L")) >= WHITE
    return np.where(is_white, numbers[0], 0).astype(np.uint8)


def _of_indexed(picture: Image.Image, palette: Sequence[PaletteClass], name: str) -> NDArray[np.uint8]:
    """Return the numbers of an indexed picture, or of its colours where only these are the palette's."""
    numbers_HW = np.asarray(picture)
    own = np.zeros((256, 3), np.uint8)
    stored = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    own[: len(stored)] = stored
    used = np.unique(numbers_HW)
    of_colour = {one.colour: one.number for one in reversed(palette)}
    by_colour = [of_colour.get(tuple(own[number].tolist())) for number in used]
    by_number = {one.number for one in palette}
    if by_number.issuperset(used.tolist()):
        colours = _colours(palette)
        differs = [
            n
            for n, other in zip(used, by_colour, strict=True)
            if other is not None and not np.array_equal(own[n], colours[n])
        ]
        if None not in by_colour and differs:
            raise SamplerError(
                f"{name} is indexed, and its numbers and its colours are different classes (number {differs[0]} has "
                f"the colour of class {by_colour[used.tolist().index(differs[0])]}): save it as RGB for the colours, "
                "or as grey levels for the numbers"
            )
        return numbers_HW
    if None not in by_colour:
        table = np.zeros(256, np.uint8)
        table[used] = np.array(by_colour, np.uint8)
        return table[numbers_HW]
    raise _unknown_numbers(numbers_HW, palette, name)


def _refuse_numbers(numbers_HW: NDArray[np.uint8], palette: Sequence[PaletteClass], name: str) -> None:
    if not {one.number for one in palette}.issuperset(np.unique(numbers_HW).tolist()):
        raise _unknown_numbers(numbers_HW, palette, name)


def _unknown_numbers(numbers_HW: NDArray[np.uint8], palette: Sequence[PaletteClass], name: str) -> SamplerError:
    """Return the error of a mask with numbers that are no class; it names the most frequent of them."""
    known = [one.number for one in palette]
    found, counts = np.unique(numbers_HW, return_counts=True)
    unknown = [(int(n), int(count)) for n, count in zip(found, counts, strict=True) if n not in known]
    number, count = max(unknown, key=lambda pair: pair[1])
    nearest = min(palette, key=lambda one: abs(one.number - number))
    hint = "; a black and white mask needs --mask-class NAME" if number == 255 else ""
    return SamplerError(
        f"{name} has {count} pixels of class {number}, which the palette lacks; the nearest is {nearest.number} "
        f"({nearest.name}), all are {_listed(palette)}{hint}"
    )


def _of_colours(pixels_HW4: NDArray[np.uint8], palette: Sequence[PaletteClass], name: str) -> NDArray[np.uint8]:
    packed_HW = pixels_HW4.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1, 0], np.uint32)
    alpha_HW = pixels_HW4[..., 3]
    if count := int(((alpha_HW > 0) & (alpha_HW < 255)).sum()):
        raise SamplerError(f"{name} has {count} half-transparent pixels; draw it without smoothed edges")
    numbers_HW = np.zeros(packed_HW.shape, np.uint8)
    is_known_HW = alpha_HW == 0
    for one in reversed(palette):  # of classes that share a colour, the first
        is_class_HW = (packed_HW == (one.colour[0] << 16 | one.colour[1] << 8 | one.colour[2])) & (alpha_HW == 255)
        numbers_HW[is_class_HW] = one.number
        is_known_HW |= is_class_HW
    if not is_known_HW.all():
        colours, counts = np.unique(packed_HW[~is_known_HW], return_counts=True)
        colour, count = int(colours[counts.argmax()]), int(counts.max())
        levels = (colour >> 16, colour >> 8 & 255, colour & 255)
        nearest = min(palette, key=lambda one: sum((a - b) ** 2 for a, b in zip(one.colour, levels, strict=True)))
        others = f" (and {len(colours) - 1} colours more)" if len(colours) > 1 else ""
        hint = "; a black and white mask needs --mask-class NAME" if levels == (255, 255, 255) else ""
        raise SamplerError(
            f"{name} has {count} pixels of colour #{colour:06x}{others}, which the palette lacks; the nearest is "
            f"#{bytes(nearest.colour).hex()} ({nearest.name}); draw it without smoothed edges{hint}"
        )
    return numbers_HW


def _listed(palette: Sequence[PaletteClass]) -> str:
    return ", ".join(f"{one.number} {one.name}" for one in palette)
