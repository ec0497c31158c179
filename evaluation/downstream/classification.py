"""A classifier trained on real images, with classical augmentation, with generated images; tested on new patients."""

from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError
from data.manifest import Manifest
from evaluation.auc import ranks
from evaluation.classifier import ClassifierConfig
from evaluation.downstream.arms import ARMS, Arm
from evaluation.downstream.labelled_images import (
    LabelledImages,
    auc_of,
    classified,
    refuse_shared_patients,
    refuse_test_images,
)
from evaluation.downstream.result import ArmResult, DatabaseResult, Downstream, write_result
from evaluation.downstream.source import Say, source_of
from evaluation.real_images import RealImages
from evaluation.realism import MIN_CLUSTERS
from launch.config import RunConfig
from models.base import resolution_of

NUM_SEEDS = 6  # the fewest of which it is significant that all are better: 2 / 2^6 < 0.05
# Networks see no larger images: they are small, and classifiers of the field see 224 pixels.
MAX_PIXELS = 256
TEST_SPLIT = "test split"


def classification(
    config: RunConfig,
    *,
    stage_name: str | None = None,
    images: Path | None = None,
    num_images: int | None = None,
    num_seeds: int = NUM_SEEDS,
    classifier: ClassifierConfig | None = None,
    say: Say = print,
) -> Downstream:
    """Return, and write, what generated images add to a classifier's AUC in the test split, database by database.

    Images are those of a folder, or a stage draws them (None: the last finished diffusion stage) with the prompts of
    training images. num_images: of each database; None: as many as it has training images. Every network takes
    `classifier.steps` steps, whatever it is trained on.
    Raises: ConfigError if there is no such stage; DataError if images lack labels, or no database has two.
    """
    manifest = Manifest.read(config.manifest_path)
    resolution = min(resolution_of(config.model), MAX_PIXELS)
    classifier = classifier or ClassifierConfig(seed=config.seed)
    source = source_of(config, stage_name, images, num_images, has_hints=False)
    found, left_out = [], {}
    for database in source.databases(config):
        rows = [row for row in manifest.rows if row.database == database]
        training, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
        if why := why_not_classified(
            [row.label for row in training], [row.label for row in test], [row.cluster for row in test]
        ):
            left_out[database] = why
            continue
        generated = source.labelled(config, manifest, training, database, resolution, say)
        real, held_out = (RealImages.read(of, config.encode, resolution) for of in (training, test))
        found.append(
            compared_classifiers(
                database,
                LabelledImages.of_real(real),
                LabelledImages.of_generated(generated),
                LabelledImages.of_real(held_out),
                classifier,
                num_seeds,
                say=say,
            )
        )
    refuse_none(found, left_out)
    result = Downstream(
        experiment="classification",
        measure="AUC",
        images_of=source.name,
        resolution=resolution,
        num_seeds=num_seeds,
        network=classifier.model_dump(exclude={"augment"}),
        databases=tuple(found),
        left_out=left_out,
    )
    write_result(config, result)
    return result


def compared_classifiers(
    database: str,
    real: LabelledImages,
    generated: LabelledImages,
    test: LabelledImages,
    classifier: ClassifierConfig,
    num_seeds: int,
    *,
    arms: Sequence[Arm] = ARMS,
    say: Say = print,
) -> DatabaseResult:
    """Return the AUC of each arm's classifiers in the test images whose label is among the training images'.

    arms: the first of them is the baseline. Raises: DataError if a patient is both in `real` and in `test`, or a
    generated image is one of `test`.
    """
    refuse_shared_patients(real.clusters, test.clusters, database)
    refuse_test_images(generated.images_NHW, generated.clusters, test.images_NHW, database)
    classes = sorted(set(real.labels))
    test = test.of_labels(classes)
    measure = auc_of(test.labels, classes)
    results: list[ArmResult] = []
    baseline = None
    for arm in arms:
        training = real + generated if arm.has_generated else real
        say(f"{database}: {num_seeds} classifiers trained on {arm.name} ({len(training)} images)")
        settings = classifier.model_copy(update={"augment": arm.is_augmented})
        answers = ranks(classified(training, test.images_NHW, settings, num_seeds))
        results.append(
            ArmResult.of(
                arm.name,
                answers,
                test.clusters,
                measure,
                classifier.seed,
                baseline=baseline,
                num_real=len(real),
                num_generated=len(training) - len(real),
                is_augmented=arm.is_augmented,
                tested_on=TEST_SPLIT,
            )
        )
        baseline = baseline or (arm.name, answers)
    return DatabaseResult(name=database, classes=tuple(classes), arms=tuple(results))


def why_not_classified(training: Sequence[str], test: Sequence[str], clusters: Sequence[str]) -> str | None:
    """Return why a database cannot be taken, by the labels of its images and its test patients; None: it can."""
    if len(set(training)) < 2:
        return f"its training images have {len(set(training))} label, needed two to tell apart"
    num_patients = len({cluster for cluster, label in zip(clusters, test, strict=True) if label in set(training)})
    if num_patients < MIN_CLUSTERS or len(set(test) & set(training)) < 2:
        return (
            f"its test split has {num_patients} patients of {len(set(test) & set(training))} known labels, needed"
            f" {MIN_CLUSTERS} and two"
        )
    return None


def refuse_none(found: Sequence[DatabaseResult], left_out: dict[str, str]) -> None:
    """Raise DataError if no database could be taken."""
    if not found:
        raise DataError(
            "no database fits this experiment: "
            + "; ".join(f"{name}: {why}" for name, why in left_out.items())
            + ": add a database, or give prepare.test_fraction a share and prepare in another folder"
        )
