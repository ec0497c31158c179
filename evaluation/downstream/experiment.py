"""The experiments by name, and how long their networks are trained."""

from pathlib import Path

from evaluation.classifier import ClassifierConfig
from evaluation.downstream.classification import classification
from evaluation.downstream.databases import NUM_SEEDS
from evaluation.downstream.generated_only import generated_only
from evaluation.downstream.result import Downstream, Experiment
from evaluation.downstream.segmentation import segmentation
from evaluation.downstream.source import Say, source_of
from evaluation.segmenter import SegmenterConfig
from launch.config import RunConfig


def run_experiment(
    config: RunConfig,
    experiment: Experiment,
    *,
    stage_name: str | None = None,
    images: Path | None = None,
    num_images: int | None = None,
    num_seeds: int = NUM_SEEDS,
    steps: int | None = None,
    say: Say = print,
) -> Downstream:
    """Return, and write, what an experiment found.

    Images are those of a folder, or a stage draws them; see `source_of`. num_images: of each database; None: as many as
    it has training images. steps: of every network; None: as their settings say.
    Raises: ConfigError if there is no such stage; as the experiments.
    """
    source = source_of(
        config,
        stage_name,
        images,
        num_images,
        say,
        has_hints=experiment == "segmentation",
        needs_stage=experiment == "generated-only",
    )
    changed = {"seed": config.seed} | ({} if steps is None else {"steps": steps})
    if experiment == "segmentation":
        return segmentation(source, SegmenterConfig.model_validate(changed), num_seeds)
    run = classification if experiment == "classification" else generated_only
    return run(source, ClassifierConfig.model_validate(changed), num_seeds)
