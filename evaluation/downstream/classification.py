"""A classifier trained on real images, with classical augmentation, with generated images; tested on new patients."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.manifest import ManifestRow
from evaluation.auc import ranks
from evaluation.classifier import ClassifierConfig
from evaluation.downstream.arms import ARMS, Arm, compared
from evaluation.downstream.databases import over_databases
from evaluation.downstream.labelled_images import (
    LabelledImages,
    auc_of,
    classified,
    images_of,
    refuse_shared_patients,
    refuse_test_images,
)
from evaluation.downstream.result import DatabaseResult, Downstream
from evaluation.downstream.source import Say, Source
from evaluation.realism import MIN_CLUSTERS


def classification(source: Source, classifier: ClassifierConfig, num_seeds: int) -> Downstream:
    """Return, and write, what generated images add to a classifier's AUC in the test split, database by database.

    Images are those of a folder, or a stage draws them with the prompts of training images. Every network takes
    `classifier.steps` steps, whatever it is trained on.
    Raises: DataError if images lack labels, or no database has two.
    """

    def of_database(database: str) -> DatabaseResult | str:
        training, test = source.rows(database, "train"), source.rows(database, "test")
        if why := why_not_classified(training, test):
            return why
        found = images_of(source, training, test, database)
        return compared_classifiers(database, *found, classifier, num_seeds, say=source.say)

    return over_databases(
        source,
        of_database,
        experiment="classification",
        measure="AUC",
        num_seeds=num_seeds,
        network=classifier.model_dump(exclude={"augment"}),
    )


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

    def answers_of(arm: Arm) -> NDArray[np.float64]:
        training = real + generated if arm.has_generated else real
        say(f"{database}: {num_seeds} classifiers trained on {arm.name} ({len(training)} images)")
        settings = classifier.model_copy(update={"augment": arm.is_augmented})
        return ranks(classified(training, test.images_NHW, settings, num_seeds))

    results = compared(
        arms,
        answers_of,
        test.clusters,
        auc_of(test.labels, classes),
        classifier.seed,
        num_real=len(real),
        num_generated=len(generated),
    )
    return DatabaseResult(name=database, classes=tuple(classes), arms=results)


def why_not_classified(training: Sequence[ManifestRow], test: Sequence[ManifestRow]) -> str | None:
    """Return why a database cannot be taken, by its training and its test images; None: it can."""
    labels = {row.label for row in training}
    if len(labels) < 2:
        return f"its training images have {len(labels)} label, needed two to tell apart"
    known = [row for row in test if row.label in labels]
    num_patients, num_labels = len({row.cluster for row in known}), len({row.label for row in known})
    if num_patients < MIN_CLUSTERS or num_labels < 2:
        return f"its test split has {num_patients} patients of {num_labels} known labels, needed {MIN_CLUSTERS} and two"
    return None
