"""How the demo's images are judged: whether they are real enough, and what they are worth to a classifier."""

from evaluation.classifier import ClassifierConfig
from evaluation.downstream.experiment import run_experiment
from evaluation.downstream.result import Downstream, Experiment, results_of
from evaluation.report import Report, evaluate_run
from evaluation.segmenter import SegmenterConfig
from launch.config import RunConfig
from launch.stage_config import StageConfig

NUM_JUDGED, NUM_JUDGED_QUICKLY = 96, 60
SEGMENTER = SegmenterConfig(steps=160)
SEGMENTER_QUICKLY = SegmenterConfig(steps=100, batch_size=10, pixels_at_once=4)
JUDGE_STEPS, JUDGE_STEPS_QUICKLY = 250, 150  # of the classifier whose features and labels judge
# The experiments of the paper in small: their own settings take hours of drawing.
NUM_DRAWN, NUM_DRAWN_QUICKLY = 72, 30
NUM_SEEDS = 2
CLASSIFIER_STEPS, CLASSIFIER_STEPS_QUICKLY = 150, 50


def judged(config: RunConfig, stage: StageConfig, *, quick: bool) -> Report:
    """Return the report of a stage, written where there is none yet of its model, and tell what it says."""
    report = Report.of_model(config.stage_model(stage)) or evaluate_run(
        config,
        NUM_JUDGED_QUICKLY if quick else NUM_JUDGED,
        stage_name=stage.name,
        classifier=ClassifierConfig(seed=config.seed, steps=JUDGE_STEPS_QUICKLY if quick else JUDGE_STEPS),
        segmenter=SEGMENTER_QUICKLY if quick else SEGMENTER,
    )
    report.print()
    return report


def worth(config: RunConfig, *, quick: bool) -> list[Downstream]:
    """Return what images are worth to a classifier, found where it is not known yet.

    On top of real ones those of the first stage; alone those of the stage that saw a part of the patients.
    """
    (few,) = (stage for stage in config.stages if stage.fraction < 1)
    stages: dict[Experiment, StageConfig] = {"classification": config.stages[0], "generated-only": few}
    return [_experiment(config, stage, name, quick=quick) for name, stage in stages.items()]


def _experiment(config: RunConfig, stage: StageConfig, name: Experiment, *, quick: bool) -> Downstream:
    known = [result for result in results_of(config.stage_model(stage)) if result.experiment == name]
    if known:
        return known[0]
    return run_experiment(
        config,
        name,
        stage_name=stage.name,
        num_images=NUM_DRAWN_QUICKLY if quick else NUM_DRAWN,
        num_seeds=NUM_SEEDS,
        steps=CLASSIFIER_STEPS_QUICKLY if quick else CLASSIFIER_STEPS,
    )
