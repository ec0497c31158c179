"""What an experiment found, and where it is kept: RUN/evaluation/downstream-EXPERIMENT.json."""

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
from evaluation.stage_images import FOLDER
from launch.config import RunConfig

Experiment = Literal["classification", "generated-only", "segmentation"]
# Raised when a figure means something else.
VERSION = 1


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
    """An experiment. images_of: what drew the generated images. left_out: databases that do not fit, and why."""

    model_config = ConfigDict(frozen=True)

    version: int = VERSION
    experiment: Experiment
    measure: Literal["AUC", "Dice"]
    images_of: str
    resolution: int
    num_seeds: int
    network: dict[str, Any]
    resamples: int = NUM_RESAMPLES
    permutations: int = NUM_PERMUTATIONS
    databases: tuple[DatabaseResult, ...]
    left_out: dict[str, str]


def result_path(config: RunConfig, experiment: Experiment) -> Path:
    """Return the file of an experiment."""
    return config.run / FOLDER / f"downstream-{experiment}.json"


def read_result(config: RunConfig, experiment: Experiment) -> Downstream | None:
    """Return what an experiment found; None where there is no file of it that this version wrote."""
    path = result_path(config, experiment)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return Downstream.model_validate(found) if found["version"] == VERSION else None


def results_in(run: Path, since: Path) -> list[Downstream]:
    """Return what the experiments of a run's folder found after a file was written, as far as this version wrote it."""
    paths = [path for path in sorted((run / FOLDER).glob("downstream-*.json")) if since.is_file()]
    newer = [path for path in paths if path.stat().st_mtime > since.stat().st_mtime]
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in newer]
    return [Downstream.model_validate(content) for content in contents if content["version"] == VERSION]


def write_result(config: RunConfig, result: Downstream) -> None:
    """Write an experiment's file, over an earlier one."""
    with replacing(result_path(config, result.experiment)) as temporary:
        temporary.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
