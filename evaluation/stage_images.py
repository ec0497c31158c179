"""Images of a stage, always from the same noise, kept in RUN/evaluation/STAGE and drawn only once."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.durable import replacing
from data.errors import DataError
from data.hints import LEVELS, hint_images
from data.manifest import Manifest, ManifestRow
from data.preprocessing import hint_of
from data.splits import HELD_OUT
from evaluation.generated_images import COLUMNS, LABELS_FILE
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.stage_config import StageConfig
from models.base import ModelConfig, resolution_of
from models.controlnet import load_control_pipeline
from models.record import read_record
from models.sampling import sample
from models.stable_diffusion import load_pipeline

FOLDER, IMAGES_FOLDER, KEY_FILE = "evaluation", "images", "drawn.json"
# Within FOLDER, of what a person's folder of images is found to be.
FOLDERS = "folders"
AT_ONCE = 8
# Raised when images would be other ones.
VERSION = 1


def stage_to_draw(config: RunConfig, name: str | None, kind: str | None = None) -> StageConfig:
    """Return the stage of that name; None: the last one of a kind (None: of any) that has a model.

    A model of fewer steps than the configuration asks for is one. Raises: ConfigError if there is none.
    """
    with_model = [stage for stage in config.stages if read_record(config.stage_model(stage)) is not None]
    if name is not None:
        stage = config.stages_until(name)[-1]
        if stage not in with_model:
            raise ConfigError(f"stage {name} has no model yet: run `sonoshard train` first")
        return stage
    of_kind = [stage for stage in with_model if kind in (None, stage.kind)]
    if not of_kind:
        what = f"{kind} stage" if kind else "stage"
        raise ConfigError(f"{config.run} has no {what} with a model yet: run `sonoshard train` first")
    return of_kind[-1]


def draw_stage(config: RunConfig, stage: StageConfig, num_images: int, say: Callable[[str], None] = print) -> Path:
    """Draw what is missing of a stage's first `num_images` images and return their folder, which has a labels.csv.

    Image i is of the noise of seed i, and of the first prompt of a held-out image, in an order that does not depend on
    `num_images`; of a ControlNet's stage, of its mask, too. Images of another model or other settings are removed.
    """
    manifest = Manifest.read(config.manifest_path)
    databases = config.databases_seen(stage)
    rows = [
        row
        for row in manifest.rows
        if row.split in HELD_OUT and row.database in databases and (row.masks or not stage.has_hints)
    ]
    if not rows:
        raise DataError(
            f"{', '.join(databases)} have no held-out image{' with a mask' if stage.has_hints else ''} whose prompt "
            "could be drawn: give prepare.test_fraction a share and prepare in another folder"
        )
    return draw_rows(config, stage, manifest.palette, rows, num_images, IMAGES_FOLDER, say)


def draw_rows(
    config: RunConfig,
    stage: StageConfig,
    palette: Sequence[str],
    rows: Sequence[ManifestRow],
    num_images: int,
    name: str,
    say: Callable[[str], None] = print,
) -> Path:
    """Draw what is missing of `num_images` images into RUN/evaluation/STAGE/`name`, as `draw_stage`, of given rows.

    Every row's prompt is drawn as often as any other, to one. palette: the manifest's.
    """
    order = np.random.default_rng(config.seed).permutation(len(rows))
    wanted = [rows[order[number % len(rows)]] for number in range(num_images)]
    folder = config.run / FOLDER / stage.name / name
    _keep_only_of(folder, _key(config, stage, [rows[place] for place in order]))
    missing = [number for number in range(num_images) if not (folder / _file(number)).is_file()]
    if missing:
        say(f"{stage.name}: {len(missing)} images to draw, {num_images - len(missing)} are there")
        _draw(config, stage, palette, wanted, missing, folder, say)
    _write_labels(folder, stage, wanted)
    return folder


def _draw(
    config: RunConfig,
    stage: StageConfig,
    palette: Sequence[str],
    wanted: Sequence[ManifestRow],
    missing: Sequence[int],
    folder: Path,
    say: Callable[[str], None],
) -> None:
    resolution = resolution_of(config.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = load_control_pipeline if stage.has_hints else load_pipeline
    pipeline = load(ModelConfig(base=str(config.stage_model(stage))), device, torch.float32)
    tell_every = max(AT_ONCE, len(missing) // 10 // AT_ONCE * AT_ONCE)
    for start in range(0, len(missing), AT_ONCE):
        numbers = missing[start : start + AT_ONCE]
        rows = [wanted[number] for number in numbers]
        masks_BHW = [np.asarray(hint_of(row, palette, resolution, config.encode.resize)) for row in rows]
        hints_BCHW = torch.from_numpy(hint_images(np.stack(masks_BHW))) if stage.has_hints else None
        images = sample(
            pipeline,
            [row.prompts[0] for row in rows],
            numbers,
            config.preview.sampling,
            height=resolution,
            width=resolution,
            hints_N3HW=hints_BCHW,
        )
        for number, image, mask_HW in zip(numbers, images, masks_BHW, strict=True):
            if stage.has_hints:
                picture = Image.fromarray(mask_HW, "P")
                picture.putpalette(LEVELS.tobytes())
                _save(picture, folder / _mask_file(number))
            _save(Image.fromarray(image), folder / _file(number))  # last: where it is, its mask is too
        if start and start % tell_every == 0:
            say(f"{stage.name}: {start + len(numbers)} of {len(missing)}")


def _key(config: RunConfig, stage: StageConfig, rows: Sequence[ManifestRow]) -> str:
    facts = (
        VERSION,
        read_record(config.stage_model(stage)),
        config.preview.sampling.model_dump(),
        resolution_of(config.model),
        config.encode.resize if stage.has_hints else None,
        [(row.key, row.prompts[0]) for row in rows],
    )
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _keep_only_of(folder: Path, key: str) -> None:
    """Empty the folder unless it holds images of that key."""
    told = folder / KEY_FILE
    try:
        if json.loads(told.read_text(encoding="utf-8")) == {"key": key}:
            return
    except (OSError, ValueError):
        pass
    if folder.exists():
        shutil.rmtree(folder)
    with replacing(told) as temporary:
        temporary.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")


def _file(number: int) -> str:
    return f"{number:06}.png"


def _mask_file(number: int) -> str:
    return f"{number:06}_mask.png"


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def _write_labels(folder: Path, stage: StageConfig, wanted: Sequence[ManifestRow]) -> None:
    """Write labels.csv as `sonoshard sample` does."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, row in enumerate(wanted):
        mask = _mask_file(number) if stage.has_hints else ""
        writer.writerow((_file(number), row.label, row.database, row.prompts[0], number, mask))
    with replacing(folder / LABELS_FILE) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
