"""Whether the images of a ControlNet stage follow the masks that it held out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.durable import replacing
from data.hints import hint_images
from data.manifest import Manifest
from evaluation.mask_agreement import MaskAgreement, mask_agreement
from evaluation.mask_sheet import mask_sheet
from evaluation.masked_images import MaskedImages, read_split
from evaluation.reconstruction import reconstructed
from evaluation.segmenter import SegmenterConfig, train_segmenter
from launch.config import RunConfig, StageConfig
from models.base import ModelConfig, resolution_of
from models.controlnet import load_control_pipeline
from models.sampling import sample

AGREEMENT_FILE = "mask_agreement.json"
SHEET_COLUMNS = 4


@dataclass(frozen=True)
class Agreement:
    """What was found in the images of some databases. sheet: the first of them that have a mask."""

    databases: tuple[str, ...]
    agreement: MaskAgreement
    sheet: Image.Image


def stage_agreement(
    config: RunConfig,
    stage: StageConfig,
    groups: Sequence[Sequence[str]],
    segmenter: SegmenterConfig,
    max_images: int,
    say: Callable[[str], None] = print,
) -> list[Agreement]:
    """Return, for each group of databases, how far images drawn from the masks of the test split follow them.

    A group has one segmenter, trained on its real images of the training split. max_images: of each group. Image i is
    drawn from the noise of seed i, with the first prompt of the sample whose mask it is.
    """
    manifest = Manifest.read(config.manifest_path)
    resolution = resolution_of(config.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = load_control_pipeline(ModelConfig(base=str(config.stage_model(stage))), device, torch.float32)
    prompts = {row.id: row.prompts[0] for row in manifest.rows}
    found = []
    for databases in groups:
        real = read_split(manifest, "test", config.encode, resolution, databases=databases, max_images=max_images)
        say(f"{', '.join(databases)}: {len(real)} images from the masks of held-out patients")
        images = sample(
            pipeline,
            [prompts[id_] for id_ in real.ids],
            range(len(real)),
            hints_N3HW=torch.from_numpy(hint_images(real.class_numbers_NHW)),
            **config.preview.sampling.model_dump(),
        )
        say(f"{', '.join(databases)}: a segmenter of real images, to judge them")
        train = read_split(manifest, "train", config.encode, resolution, databases=databases)
        judge = train_segmenter(train.images_NHW, train.class_numbers_NHW, manifest.palette, segmenter)
        generated = real.redrawn(images)
        agreement = mask_agreement(
            judge, real, generated, reconstructed=real.redrawn(reconstructed(pipeline.vae, real.images_NHW))
        )
        predicted_NHW = judge.predict(generated.images_NHW)
        sheet = _sheet(real, generated, predicted_NHW, manifest.palette, prompts)
        found.append(Agreement(tuple(databases), agreement, sheet))
    return found


def _sheet(
    real: MaskedImages,
    generated: MaskedImages,
    predicted_NHW: NDArray[np.uint8],
    palette: Sequence[str],
    prompts: dict[str, str],
) -> Image.Image:
    """Return the first images that have a mask, spread over all, with what was found in them."""
    masked = np.flatnonzero(real.class_numbers_NHW.any(axis=(1, 2)))
    chosen = masked[np.arange(SHEET_COLUMNS) * len(masked) // SHEET_COLUMNS] if len(masked) > SHEET_COLUMNS else masked
    columns = MaskedImages(
        generated.images_NHW[chosen],
        generated.class_numbers_NHW[chosen],
        tuple(generated.ids[place] for place in chosen),
        tuple(generated.clusters[place] for place in chosen),
    )
    return mask_sheet(
        columns,
        predicted_NHW[chosen],
        real.images_NHW[chosen],
        palette,
        _captions([prompts[id_] for id_ in columns.ids]),
        "Images drawn from masks of held-out patients",
        "Columns: evenly spread over the test split's masks. The segmenter was trained on real images alone.",
    )


def _captions(prompts: Sequence[str]) -> list[str]:
    """Return prompts without the parts, up to a comma, that all of them begin with."""
    parts = [prompt.split(", ") for prompt in prompts]
    num_shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
    return [", ".join(part[num_shared:] or part[-1:]) for part in parts]


def write_agreement(found: Sequence[Agreement], folder: Path) -> None:
    """Write FOLDER/mask_agreement.json and a sheet of each group beside it."""
    content: list[dict[str, Any]] = []
    for number, group in enumerate(found):
        name = f"masks-{number}.png"
        with replacing(folder / name) as temporary:
            group.sheet.save(temporary, format="PNG", optimize=True)
        content.append({"databases": group.databases, "sheet": name, **group.agreement.to_json()})
    with replacing(folder / AGREEMENT_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
