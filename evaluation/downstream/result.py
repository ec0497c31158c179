"""What an experiment found, and where it is kept: downstream-EXPERIMENT.json in RUN/evaluation/STAGE of its images.

Of a folder's images it is RUN/evaluation/folders/NAME.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data.durable import replacing
from evaluation.downstream.paired import NUM_PERMUTATIONS, Difference, Measure, compare, estimate
from evaluation.intervals import NUM_RESAMPLES, Interval
from evaluation.stage_images import FOLDER, FOLDERS
from launch.config import RunConfig
from models.record import record_sha256

Experiment = Literal["classification", "generated-only", "segmentation"]
# Raised when a figure means something else.
VERSION = 2


class ArmResult(BaseModel):
    """What the networks of one arm reach. reached: mean over seeds. of_seeds: of each of them, in their order.

    against: how they differ from the networks of the arm that is named there, in the same test images; None of those.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    num_real: int
    num_generated: int
    is_augmented: bool
    tested_on: str
    num_tested: int
    num_patients: int
    reached: Interval
    of_seeds: tuple[float, ...]
    baseline: str | None = None
    against: Difference | None = None

    @classmethod
    def of(
        cls,
        name: str,
        answers: NDArray[Any],
        clusters: Sequence[str],
        measure: Measure,
        seed: int,
        *,
        baseline: tuple[str, NDArray[Any]] | None = None,
        **facts: Any,
    ) -> Self:
        """Return the result of answers [S, N, ...], one of each seed and test image. baseline: its name and answers."""
        of_seeds = measure(answers, np.arange(len(clusters)))
        return cls(
            name=name,
            num_tested=len(clusters),
            num_patients=len(set(clusters)),
            reached=estimate(answers, clusters, measure, seed),
            of_seeds=tuple(map(float, of_seeds)),
            baseline=baseline[0] if baseline else None,
            against=compare(answers, baseline[1], clusters, measure, seed) if baseline else None,
            **facts,
        )


class DatabaseResult(BaseModel):
    """What was found in one database. classes: labels, or what masks show."""

    model_config = ConfigDict(frozen=True)

    name: str
    classes: tuple[str, ...]
    arms: tuple[ArmResult, ...]


class Downstream(BaseModel):
    """An experiment. images_of: what drew the generated images. left_out: databases that do not fit, and why.

    model_sha256: of the drawing stage's record; None of a folder's images.
    """

    model_config = ConfigDict(frozen=True)

    version: int = VERSION
    experiment: Experiment
    measure: Literal["AUC", "Dice"]
    images_of: str
    model_sha256: str | None = None
    resolution: int
    num_seeds: int
    network: dict[str, Any]
    resamples: int = NUM_RESAMPLES
    permutations: int = NUM_PERMUTATIONS
    databases: tuple[DatabaseResult, ...]
    left_out: dict[str, str]


def result_path(config: RunConfig, experiment: Experiment, images_of: str) -> Path:
    """Return the file of an experiment. images_of: `stage NAME` or `folder NAME`, as results have it."""
    kind, _, name = images_of.partition(" ")
    return config.run / FOLDER / (name if kind == "stage" else f"{FOLDERS}/{name}") / f"downstream-{experiment}.json"


def results_of(model: Path) -> list[Downstream]:
    """Return what the images of a stage's model, RUN/stages/NAME/model, were found to be worth, as it is now."""
    stage = model.resolve().parent
    paths = sorted((stage.parent.parent / FOLDER / stage.name).glob("downstream-*.json"))
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    found = [Downstream.model_validate(content) for content in contents if content["version"] == VERSION]
    return [result for result in found if result.model_sha256 == record_sha256(model)]


def write_result(config: RunConfig, result: Downstream) -> None:
    """Write an experiment's file, over an earlier one of the same images."""
    with replacing(result_path(config, result.experiment, result.images_of)) as temporary:
        temporary.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
