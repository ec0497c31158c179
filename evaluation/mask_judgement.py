"""Whether generated images follow their masks, database by database, with a sheet to see it by."""

# N images, H W height and width in pixels

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.encode import EncodeConfig
from data.manifest import ManifestRow
from evaluation.evenly import evenly
from evaluation.generated_images import ALL, GeneratedImages
from evaluation.mask_agreement import MaskAgreement, mask_agreement
from evaluation.mask_sheet import mask_sheet
from evaluation.masked_images import MaskedImages, read_rows
from evaluation.segmenter import SegmenterConfig, train_segmenter

SHEET_COLUMNS = 4
# Real ones of a database, evenly spread; more would hardly change a mean.
MAX_REAL_IMAGES = 128
# Of real images, uint8 [N, H, W], through the VAE: the same shape.
Reconstruct = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@dataclass(frozen=True)
class MaskJudgement:
    """What was found in a database's images. sheet: the first of them that have a mask, evenly spread."""

    database: str
    agreement: MaskAgreement
    sheet: Image.Image


def judge_masks(
    generated: GeneratedImages,
    training: Sequence[ManifestRow],
    held_out: Sequence[ManifestRow],
    palette: Sequence[str],
    encode: EncodeConfig,
    config: SegmenterConfig,
    reconstruct: Reconstruct,
    *,
    seed: int,
    say: Callable[[str], None] = print,
) -> list[MaskJudgement]:
    """Return what segmenters of real images find in the generated images of each database that were drawn from masks.

    Of images that name no database (see `GeneratedImages.among`) one segmenter of all databases looks for the masks.
    Left out: databases of which no training image or no generated one has a mask with more than background, or no
    held-out one has a mask.
    """
    resolution = generated.images_NHW.shape[1]
    found = []
    for database in sorted(set(generated.databases)):
        own = [place for place in generated.places_of(database) if generated.masks[place] is not None]
        rows, real_rows = (
            [row for row in of if row.masks and database in (row.database, ALL)] for of in (training, held_out)
        )
        if not rows or not real_rows or not any(_mask(generated, place).any() for place in own):
            continue
        say(f"{database}: a segmenter of {len(rows)} real images, to look for the masks")
        train = read_rows(rows, palette, encode, resolution)
        if not train.class_numbers_NHW.any():
            continue
        segmenter = train_segmenter(train.images_NHW, train.class_numbers_NHW, palette, config)
        chosen = [real_rows[place] for place in evenly(MAX_REAL_IMAGES, len(real_rows))]
        real = read_rows(chosen, palette, encode, resolution)
        drawn = MaskedImages(
            generated.images_NHW[own],
            np.stack([_mask(generated, place) for place in own]),
            tuple(generated.files[place] for place in own),
            # Several images may be drawn from one mask: it is what another image's mask must differ from.
            tuple(sha256(_mask(generated, place).tobytes()).hexdigest() for place in own),
        )
        agreement = mask_agreement(
            segmenter, real, drawn, reconstructed=real.redrawn(reconstruct(real.images_NHW)), seed=seed
        )
        labels = [generated.labels[place] or generated.files[place] for place in own]
        found.append(MaskJudgement(database, agreement, _sheet(drawn, segmenter.predict, labels, palette)))
    return found


def _mask(generated: GeneratedImages, place: int) -> NDArray[np.uint8]:
    mask = generated.masks[place]
    assert mask is not None
    return mask


def _sheet(
    drawn: MaskedImages,
    predict: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    captions: Sequence[str],
    palette: Sequence[str],
) -> Image.Image:
    masked = np.flatnonzero(drawn.class_numbers_NHW.any(axis=(1, 2)))
    chosen = masked[evenly(SHEET_COLUMNS, len(masked))]
    columns = drawn.at(chosen)
    return mask_sheet(
        columns,
        predict(columns.images_NHW),
        palette,
        [captions[place] for place in chosen],
        "Images drawn from masks, and what a segmenter finds in them",
        "Columns: evenly spread over the images. The segmenter was trained on real images alone.",
    )
