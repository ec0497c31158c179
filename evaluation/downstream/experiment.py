"""The experiments by name, and how long their networks are trained."""

from pathlib import Path

from evaluation.classifier import ClassifierConfig
from evaluation.downstream.classification import classification
from evaluation.downstream.databases import NUM_SEEDS
from evaluation.downstream.generated_only import generated_only
from evaluation.downstream.result import Downstream, Experiment
from evaluation.downstream.segmentation import segmentation
from evaluation.downstream.source import Say
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
    """Return, and write, what an experiment found. steps: of every network; None: as their settings say.

    Raises: as the experiments.
    """
    changed = {"seed": config.seed} | ({} if steps is None else {"steps": steps})
    if experiment == "segmentation":
        return segmentation(
            config,
            stage_name=stage_name,
            images=images,
            num_images=num_images,
            num_seeds=num_seeds,
            segmenter=SegmenterConfig.model_validate(changed),
            say=say,
        )
    run = classification if experiment == "classification" else generated_only
    return run(
        config,
        stage_name=stage_name,
        images=images,
        num_images=num_images,
        num_seeds=num_seeds,
        classifier=ClassifierConfig.model_validate(changed),
        say=say,
    )
