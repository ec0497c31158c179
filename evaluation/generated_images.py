"""Generated images to be judged, with what they were asked for, read from a folder such as `sample` writes."""

# N images, H W height and width in pixels

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.encode import EncodeConfig
from data.errors import DataError
from data.preprocessing import resized

LABELS_FILE = "labels.csv"
COLUMNS = ("file", "label", "database", "prompt", "seed", "mask")
SHEET_FILE, MASK_ENDING, MASKS_FOLDER = "contact_sheet.png", "_mask.png", "masks"
# Of images whose database is not known: all of the run's together.
ALL = "all databases"
KINDS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class GeneratedImages:
    """images_NHW: uint8, grey. labels, databases: what was asked for; "" where that is not known, see `among`.

    masks: class numbers [H, W] uint8 that an image was drawn from; None where it was not.
    """

    images_NHW: NDArray[np.uint8]
    files: tuple[str, ...]
    labels: tuple[str, ...]
    databases: tuple[str, ...]
    masks: tuple[NDArray[np.uint8] | None, ...]

    def __len__(self) -> int:
        return len(self.files)

    def among(self, known: Sequence[str]) -> Self:
        """Return the same images, each of one of the `known` databases, or of `ALL` where it names none of them.

        Of a single known database are all that name none. A name that is not known warns.
        """
        if foreign := sorted(set(self.databases) - {"", *known}):
            warnings.warn(
                f"{LABELS_FILE} names the database {', '.join(foreign)}, of which there are no real images to compare"
                f" with (there are {', '.join(known)}): those images are taken as of no database",
                stacklevel=2,
            )
        otherwise = known[0] if len(known) == 1 else ALL
        return replace(self, databases=tuple(name if name in known else otherwise for name in self.databases))

    def places_of(self, database: str) -> list[int]:
        """Return the places of a database's images."""
        return [place for place, name in enumerate(self.databases) if name == database]


def count_generated(folder: Path) -> int:
    """Return how many images `read_generated` finds in a folder. Raises: DataError if there are fewer than two."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: give one of generated images, such as `sonoshard sample` writes")
    num = len(_rows(folder))
    if num < 2:
        raise DataError(f"{folder} has {num} images, needed two or more: .png, .jpg, .bmp or .tif")
    return num


def generated_databases(folder: Path) -> list[str]:
    """Return the database of each image that `read_generated` finds, "" where that is not known; reads no image."""
    count_generated(folder)
    return [row["database"] for row in _rows(folder)]


def read_generated(
    folder: Path,
    config: EncodeConfig,
    resolution: int,
    places: Sequence[int] | None = None,
    palette: Sequence[str] | None = None,
) -> GeneratedImages:
    """Return the images of a folder at a resolution in pixels, as `encode` would resize them.

    Those that labels.csv names, in its order; without one, all there are below the folder, by name, but for contact
    sheet and masks, and nothing is known of them. Masks are PNGs of class numbers. places: of those wanted, from 0 to
    `count_generated` - 1; None: all. palette: the manifest's, of which masks must be.
    Raises: DataError if there are fewer than two, or one cannot be read, or a mask has a number beyond the palette.
    """
    num, every = count_generated(folder), _rows(folder)
    rows = [every[place] for place in (range(num) if places is None else places)]
    images, masks = [], []
    for row in rows:
        picture = _opened(folder, row["file"]).convert("L")
        images.append(np.asarray(resized(picture, resolution, config.resize)))
        masks.append(_mask(folder, row["mask"], config, resolution, palette) if row["mask"] else None)
    return GeneratedImages(
        np.stack(images),
        tuple(row["file"] for row in rows),
        tuple(row["label"] for row in rows),
        tuple(row["database"] for row in rows),
        tuple(masks),
    )


def _rows(folder: Path) -> list[dict[str, str]]:
    table = folder / LABELS_FILE
    if not table.is_file():
        paths = [path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file()]
        shown = [path.relative_to(folder) for path in paths if path.name != SHEET_FILE]
        names = sorted(path.as_posix() for path in shown if MASKS_FOLDER not in path.parts[:-1])
        return [{**dict.fromkeys(COLUMNS, ""), "file": name} for name in names if not name.endswith(MASK_ENDING)]
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if "file" not in (reader.fieldnames or ()):
                raise DataError(f"{table} has no column `file`, needed {', '.join(COLUMNS)}; or remove it")
            return [{name: row.get(name) or "" for name in COLUMNS} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is no CSV file in UTF-8 ({error}): save it as that, or remove it") from error


def _opened(folder: Path, name: str) -> Image.Image:
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise DataError(f"{folder / LABELS_FILE} names {name}, which is outside that folder: move it there")
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise DataError(f"{folder / name} cannot be read as an image ({error}): draw it again, or remove it") from error


def _mask(
    folder: Path, name: str, config: EncodeConfig, resolution: int, palette: Sequence[str] | None
) -> NDArray[np.uint8]:
    picture = _opened(folder, name)
    if picture.mode not in ("P", "L", "1"):
        raise DataError(
            f"{folder / name} has pixels of mode {picture.mode}, needed class numbers (P or L): write masks as `sample`"
        )
    numbers_HW = np.asarray(picture if picture.mode != "1" else picture.convert("L"))
    if palette is not None and numbers_HW.max() >= len(palette):
        known = ", ".join(f"{number} {of}" for number, of in enumerate(palette))
        raise DataError(
            f"{folder / name} has the class number {numbers_HW.max()}, needed those of the manifest ({known}): write"
            " masks as `sample` does, or leave them out of labels.csv"
        )
    return np.asarray(resized(Image.fromarray(numbers_HW), resolution, config.resize, Image.Resampling.NEAREST))
