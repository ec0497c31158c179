"""How real the images of each stage look, database by database, and what is kept of it: RUN/realism.json."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data.durable import replacing
from data.errors import DataError
from data.manifest import Manifest, ManifestRow
from data.preprocessing import picture_of
from data.splits import HELD_OUT
from evaluation.evenly import evenly
from evaluation.masked_images import grey
from evaluation.realism import MIN_CLUSTERS, Realism, Scale, real_against_real, realism
from evaluation.ultrasound_statistics import STATISTICS, image_statistics
from launch.config import RunConfig
from launch.forgetting import DIFFUSION, MatrixRow, read_matrix
from launch.stage_config import BASE
from models.base import ModelConfig, resolution_of
from models.record import read_record
from models.sampling import sample
from models.stable_diffusion import load_pipeline

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

REALISM_FILE = "realism.json"
# Raised when the statistics change: what lies there is then drawn again.
VERSION = 2
FEATURES = "ultrasound statistics, standardised by real training images"
# Of a database's split, evenly spread; more would hardly change the distributions.
MAX_REAL_IMAGES = 512


class Cell(Realism):
    """The realism of one model's images of one database. key: a hash of all that they depend on."""

    key: str


class RealismRow(BaseModel):
    """What one model drew, by database, and what that model was trained on."""

    model_config = ConfigDict(frozen=True)

    name: str
    starts: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    replay: tuple[str, ...] = ()
    realism: dict[str, Cell]


class RealismMatrix(BaseModel):
    """Stages by databases, as the forgetting matrix. real: held-out real images, one half against the other."""

    model_config = ConfigDict(frozen=True)

    version: int = VERSION
    features: str = FEATURES
    statistics: tuple[str, ...] = STATISTICS
    num_images: int
    databases: tuple[str, ...]
    real: dict[str, Realism]
    rows: tuple[RealismRow, ...]


@dataclass(frozen=True)
class HeldOutStatistics:
    """The held-out images of a database, [N, D]; drawn ones are brought to the same `scale`.

    prompts: one of each image. digest: of the images, those that the scale is of, and how they were read.
    """

    features_ND: NDArray[np.float64]
    clusters: tuple[str, ...]
    prompts: tuple[str, ...]
    scale: Scale
    digest: str

    @classmethod
    def read(cls, config: RunConfig, rows: Sequence[ManifestRow], resolution: int) -> "HeldOutStatistics | None":
        """Return those of a database's rows at a resolution in pixels; None where there are too few patients."""
        held_out, training = (
            _spread([row for row in rows if row.split in splits], MAX_REAL_IMAGES) for splits in (HELD_OUT, ("train",))
        )
        clusters = tuple(row.cluster for row in held_out)
        if len(set(clusters)) < MIN_CLUSTERS or not training:
            return None

        def statistics(rows: Sequence[ManifestRow]) -> NDArray[np.float64]:
            pictures = (picture_of(row, resolution, config.encode.resize) for row in rows)
            return image_statistics(np.asarray(picture.convert("L")) for picture in pictures)

        scale = Scale(statistics(training))
        prompts = tuple(row.prompts[0] for row in held_out)
        digest = _digest(
            VERSION, resolution, config.encode.resize, prompts, [row.key for row in [*held_out, *training]]
        )
        return cls(scale(statistics(held_out)), clusters, prompts, scale, digest)


def stage_realism(config: RunConfig, num_images: int, say: Callable[[str], None] = print) -> RealismMatrix:
    """Return how real the images of the base and of every finished diffusion stage look; write RUN/realism.json.

    num_images: of each stage and database, two or more; image i is drawn from the noise of seed i, with the prompt of a
    held-out image, evenly spread over them. What the file has of the same model, prompts and settings is not drawn
    again; it is written after every database. Raises: DataError if no database has enough held-out patients.
    """
    resolution = resolution_of(config.model)
    held_out = _read_held_out(config, resolution)
    real = {name: real_against_real(of.features_ND, of.clusters, config.seed) for name, of in held_out.items()}
    known = _known_cells(config)
    stages = [row for row in read_matrix(config).rows if row.kind == DIFFUSION]
    cells: list[dict[str, Cell]] = [{} for _ in stages]

    def matrix() -> RealismMatrix:
        rows = tuple(
            RealismRow(name=row.name, starts=row.starts, databases=row.databases, replay=row.replay, realism=of_row)
            for row, of_row in zip(stages, cells, strict=True)
        )
        return RealismMatrix(num_images=num_images, databases=tuple(held_out), real=real, rows=rows)

    missing = []
    for row, of_row in zip(stages, cells, strict=True):
        for name, of in held_out.items():
            key = _digest(*_model_facts(config, row), config.preview.sampling.model_dump(), num_images, of.digest)
            if key in known:
                of_row[name] = known[key]
            else:
                missing.append((row, of_row, name, key))
    pipeline: StableDiffusionPipeline | None = None
    loaded: MatrixRow | None = None
    for row, of_row, name, key in missing:
        if pipeline is None or loaded is not row:
            pipeline, loaded = _pipeline(config, row), row
        say(f"{row.name}: {num_images} images of {name}")
        prompts = held_out[name].prompts
        images = sample(
            pipeline,
            [prompts[number * len(prompts) // num_images] for number in range(num_images)],
            range(num_images),
            config.preview.sampling,
            height=resolution,
            width=resolution,
        )
        features_ND = held_out[name].scale(image_statistics(grey(images)))
        of_row[name] = Cell(key=key, **realism(features_ND, held_out[name].features_ND).model_dump())
        _write(config, matrix())
    _write(config, matrix())
    return matrix()


def _read_held_out(config: RunConfig, resolution: int) -> dict[str, HeldOutStatistics]:
    rows = Manifest.read(config.manifest_path).rows
    found = {}
    for name in config.databases:
        held_out = HeldOutStatistics.read(config, [row for row in rows if row.database == name], resolution)
        if held_out is None:
            warnings.warn(
                f"{name} is left out: needed {MIN_CLUSTERS} held-out patients and training images",
                stacklevel=3,
            )
        else:
            found[name] = held_out
    if not found:
        raise DataError(
            f"no database has {MIN_CLUSTERS} held-out patients to compare generated images with: give"
            " prepare.test_fraction a share and prepare in another folder"
        )
    return found


def _spread(rows: Sequence[ManifestRow], max_images: int) -> list[ManifestRow]:
    return [rows[place] for place in evenly(max_images, len(rows))]


def _pipeline(config: RunConfig, row: MatrixRow) -> "StableDiffusionPipeline":
    # The base draws by what it was made to predict, whatever this run trains it to.
    model = config.model.model_copy(update={"prediction_type": None, "zero_terminal_snr": None})
    if row.name != BASE:
        model = ModelConfig(base=str(_model_folder(config, row)))
    return load_pipeline(model, "cuda" if torch.cuda.is_available() else "cpu", torch.float32)


def _model_facts(config: RunConfig, row: MatrixRow) -> tuple[Any, ...]:
    """Return what another model would have otherwise: of a stage its record, with its steps; of the base its name."""
    if row.name == BASE:
        return config.model.base, config.model.single_file_config
    return row.name, read_record(_model_folder(config, row))


def _model_folder(config: RunConfig, row: MatrixRow) -> Path:
    return next(config.stage_model(stage) for stage in config.stages if stage.name == row.name)


def _digest(*facts: Any) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _known_cells(config: RunConfig) -> dict[str, Cell]:
    """Return what the run's file has, by key; nothing where there is none, or none that can be read."""
    try:
        content = json.loads((config.run / REALISM_FILE).read_text(encoding="utf-8"))
        matrix = RealismMatrix.model_validate(content)
    except (OSError, ValueError):
        return {}
    return {cell.key: cell for row in matrix.rows for cell in row.realism.values()}


def _write(config: RunConfig, matrix: RealismMatrix) -> None:
    with replacing(config.run / REALISM_FILE) as temporary:
        temporary.write_text(matrix.model_dump_json(indent=1) + "\n", encoding="utf-8")
