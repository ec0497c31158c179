"""A classifier trained on generated images alone: does it know the real ones behind them, and new ones?

The model is one of few patients, of a stage with a `fraction`. That its images teach the labels of the very images it
was trained on, as in the paper (94 %), copies would do as well; the test split tells.
"""

from typing import Any

from data.errors import DataError
from evaluation.auc import ranks
from evaluation.classifier import ClassifierConfig
from evaluation.downstream.arms import TEST_SPLIT
from evaluation.downstream.classification import why_not_classified
from evaluation.downstream.databases import over_databases
from evaluation.downstream.labelled_images import (
    LabelledImages,
    auc_of,
    classified,
    images_of,
    refuse_shared_patients,
    refuse_test_images,
)
from evaluation.downstream.learnt_rows import learnt_rows
from evaluation.downstream.result import ArmResult, DatabaseResult, Downstream
from evaluation.downstream.source import Say, Source

# Learnt images: the real ones that the model which drew the others was trained on.
GENERATED_ALONE, LEARNT = "generated alone", "learnt images"


def generated_only(source: Source, classifier: ClassifierConfig, num_seeds: int) -> Downstream:
    """Return, and write, the AUC of a classifier trained on generated images alone, database by database.

    It is tested on the real images that the stage's model has learnt from and on the test split; beside it, one that is
    trained on those same real images. Images are drawn by the stage, with the prompts of what it has learnt from, or
    are those of a folder that it drew. Every network takes `classifier.steps` steps.
    Raises: DataError if images lack labels, or no database has two.
    """

    def of_database(database: str) -> DatabaseResult | str:
        assert source.stage is not None
        learnt = learnt_rows(source.config, source.stage, source.manifest.rows, database)
        test = source.rows(database, "test")
        if why := why_not_classified(learnt, test):
            return why
        found = images_of(source, learnt, test, database)
        return compared_alone(database, *found, classifier, num_seeds, say=source.say)

    return over_databases(
        source,
        of_database,
        experiment="generated-only",
        measure="AUC",
        num_seeds=num_seeds,
        network=classifier.model_dump(),
    )


def compared_alone(
    database: str,
    learnt: LabelledImages,
    generated: LabelledImages,
    test: LabelledImages,
    classifier: ClassifierConfig,
    num_seeds: int,
    *,
    say: Say = print,
) -> DatabaseResult:
    """Return the AUC of classifiers trained on generated images alone, and of others trained on `learnt`.

    learnt: the real images that the model has learnt from. Raises: DataError if a label has no generated image, a
    patient is both in `learnt` and in `test`, or a generated image is one of `test`.
    """
    refuse_shared_patients(learnt.clusters, test.clusters, database)
    refuse_test_images(generated.images_NHW, generated.clusters, test.images_NHW, database)
    classes = sorted(set(learnt.labels))
    if missing := [label for label in classes if label not in generated.labels]:
        raise DataError(
            f"{database} has no generated image of {missing[0]}, needed some of each of {', '.join(classes)}: draw"
            " more, or a set with all labels"
        )
    test = test.of_labels(classes)
    tested = learnt + test
    say(f"{database}: {num_seeds} classifiers trained on {len(generated)} generated images alone")
    of_generated = classified(generated, tested.images_NHW, classifier, num_seeds)
    say(f"{database}: {num_seeds} classifiers trained on the {len(learnt)} real images that the model learnt from")
    of_real = ranks(classified(learnt, test.images_NHW, classifier, num_seeds))
    on_learnt, on_test = ranks(of_generated[:, : len(learnt)]), ranks(of_generated[:, len(learnt) :])
    measure = auc_of(test.labels, classes)
    alone: dict[str, Any] = {"num_real": 0, "num_generated": len(generated), "is_augmented": classifier.augment}
    same: dict[str, Any] = {"num_real": len(learnt), "num_generated": 0, "is_augmented": classifier.augment}
    seed = classifier.seed
    return DatabaseResult(
        name=database,
        classes=tuple(classes),
        arms=(
            ArmResult.of(
                GENERATED_ALONE,
                on_learnt,
                learnt.clusters,
                auc_of(learnt.labels, classes),
                seed,
                tested_on=LEARNT,
                **alone,
            ),
            ArmResult.of(LEARNT, of_real, test.clusters, measure, seed, tested_on=TEST_SPLIT, **same),
            ArmResult.of(
                GENERATED_ALONE,
                on_test,
                test.clusters,
                measure,
                seed,
                baseline=(LEARNT, of_real),
                tested_on=TEST_SPLIT,
                **alone,
            ),
        ),
    )
