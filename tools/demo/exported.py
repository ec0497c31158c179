"""What the demo hands on: its model in all forms, and a labelled set drawn with the sampler's packages alone."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.manifest import Manifest
from data.preprocessing import hint_of
from launch.config import RunConfig
from launch.stage_config import StageConfig
from models.base import resolution_of
from models.record import RECORD_FILE
from sampler.image_set import LABELS
from tools.bare_environment import bare_python
from tools.export.export import Form, export

EXPORTED, SAMPLED = "exported", "sampled"
MASKS_PER_CLASS, MASKS_PER_CLASS_QUICKLY = 4, 2


@dataclass(frozen=True)
class Exported:
    """Where each form of a model lies."""

    diffusers: Path
    single_file: Path
    bundle: Path


def export_all(config: RunConfig, stage: StageConfig) -> Exported:
    """Write a stage's model to RUN/exported in all three forms, where it is not there yet."""
    folder, model = config.run / EXPORTED, config.stage_model(stage)
    made = Exported(folder / "diffusers", folder / "single-file" / f"{stage.name}.safetensors", folder / "bundle")
    if folder.exists() and folder.stat().st_mtime > (model / RECORD_FILE).stat().st_mtime:
        return made
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    forms: dict[Form, Path] = {"diffusers": made.diffusers, "single-file": made.single_file, "onnx": made.bundle}
    for form, path in forms.items():
        told = export(str(model), unfinished / path.relative_to(folder), form)
        print(told.replace(str(unfinished), str(folder)))
    unfinished.rename(folder)
    os.utime(folder)
    return made


def draw_in_bare_environment(config: RunConfig, bundle: Path, *, quick: bool) -> None:
    """Draw RUN/sampled, where it is not there yet: each class, from masks of new patients, by the bundle's sample.py.

    Raises: RuntimeError if it fails.
    """
    out, masks = config.run / SAMPLED, config.run / "held-out-masks"
    if out.exists() and out.stat().st_mtime < bundle.stat().st_mtime:
        shutil.rmtree(out)
    if (out / LABELS).is_file():  # which is written last
        return
    per_class = MASKS_PER_CLASS_QUICKLY if quick else MASKS_PER_CLASS
    _write_masks(config, masks, per_class)
    python = bare_python(config.run / "bare-environment")
    for what in (
        ["--selftest"],
        ["--per-class", str(per_class), "--mask", str(masks.resolve()), "--out", str(out.resolve())],
    ):
        # No other variable, and no other folder, leads to this project.
        ended = subprocess.run([python.absolute(), "sample.py", *what], cwd=bundle, env={}, check=False)
        if ended.returncode != 0:
            raise RuntimeError(
                f"the bundle {bundle} cannot be drawn from: python sample.py ended with {ended.returncode}"
            )


def _write_masks(config: RunConfig, folder: Path, per_class: int) -> None:
    """Write the first masks of held-out patients as class PNGs, in folders by database and label.

    An image without masks has one of background alone, as it had in training.
    """
    manifest, resolution = Manifest.read(config.manifest_path), resolution_of(config.model)
    shutil.rmtree(folder, ignore_errors=True)
    counts: dict[Path, int] = {}
    for row in manifest.rows:
        own = folder / row.database / row.label
        if row.split != "test" or counts.get(own, 0) == per_class:
            continue
        counts[own] = counts.get(own, 0) + 1
        own.mkdir(parents=True, exist_ok=True)
        numbers = np.asarray(hint_of(row, manifest.palette, resolution, config.encode.resize))
        Image.fromarray(numbers).save(own / f"{counts[own]}.png")
