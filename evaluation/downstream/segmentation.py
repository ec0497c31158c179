"""A segmenter trained on real images, with classical augmentation, with generated images; tested on new patients."""

# N images, S seeds

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import DataError
from data.manifest import ManifestRow
from data.preprocessing import hint_of, resized
from evaluation.downstream.arms import ARMS, Arm, compared
from evaluation.downstream.databases import over_databases
from evaluation.downstream.labelled_images import refuse_shared_patients, refuse_test_images
from evaluation.downstream.result import DatabaseResult, Downstream
from evaluation.downstream.source import Say, Source
from evaluation.generated_images import GeneratedImages
from evaluation.mask_agreement import dice
from evaluation.masked_images import MaskedImages, read_rows
from evaluation.realism import MIN_CLUSTERS
from evaluation.segmenter import SegmenterConfig, train_segmenter
from models.base import resolution_of


def segmentation(source: Source, segmenter: SegmenterConfig, num_seeds: int) -> Downstream:
    """Return, and write, what generated images add to a segmenter's Dice in the test split, database by database.

    Images are those of a folder, with their masks, or a ControlNet's stage draws them from the masks of training
    images. Every network takes `segmenter.steps` steps, whatever it is trained on.
    Raises: DataError if images lack masks, or were drawn from those of test images, or no database has any.
    """
    palette = source.manifest.palette

    def of_database(database: str) -> DatabaseResult | str:
        training, test = ([row for row in source.rows(database, split) if row.masks] for split in ("train", "test"))
        num_patients = len({row.cluster for row in test})
        if not training or num_patients < MIN_CLUSTERS:
            return (
                f"{len(training)} training images and {num_patients} test patients have masks, needed some and"
                f" {MIN_CLUSTERS}"
            )
        generated = _masked(source.masked(training, database))
        refuse_test_masks(generated, test, source, database)
        real, held_out = (read_rows(of, palette, source.config.encode, source.resolution) for of in (training, test))
        return compared_segmenters(database, real, generated, held_out, palette, segmenter, num_seeds, say=source.say)

    return over_databases(
        source,
        of_database,
        experiment="segmentation",
        measure="Dice",
        num_seeds=num_seeds,
        network=segmenter.model_dump(exclude={"augment"}),
    )


def compared_segmenters(
    database: str,
    real: MaskedImages,
    generated: MaskedImages,
    test: MaskedImages,
    palette: Sequence[str],
    segmenter: SegmenterConfig,
    num_seeds: int,
    *,
    arms: Sequence[Arm] = ARMS,
    say: Say = print,
) -> DatabaseResult:
    """Return the Dice of each arm's segmenters: mean over the test images whose mask is not empty.

    Of an image it is the mean over the classes that its mask has. arms: the first of them is the baseline.
    Raises: DataError if a patient is both in `real` and in `test`, or a generated image is one of `test`.
    """
    refuse_shared_patients(real.clusters, test.clusters, database)
    refuse_test_images(generated.images_NHW, generated.ids, test.images_NHW, database)
    is_masked = test.class_numbers_NHW.any(axis=(1, 2))
    clusters = [test.clusters[place] for place in np.flatnonzero(is_masked)]

    def answers_of(arm: Arm) -> NDArray[np.float64]:
        training = _united(real, generated) if arm.has_generated else real
        say(f"{database}: {num_seeds} segmenters trained on {arm.name} ({len(training)} images)")
        settings = segmenter.model_copy(update={"augment": arm.is_augmented})
        seeds = range(segmenter.seed, segmenter.seed + num_seeds)
        of_seeds = [_dice(training, test, palette, settings.model_copy(update={"seed": seed})) for seed in seeds]
        return np.stack(of_seeds)[:, is_masked]

    results = compared(
        arms, answers_of, clusters, _mean, segmenter.seed, num_real=len(real), num_generated=len(generated)
    )
    numbers = np.unique(test.class_numbers_NHW)
    return DatabaseResult(name=database, classes=tuple(palette[number] for number in numbers if number), arms=results)


def refuse_test_masks(generated: MaskedImages, test: Sequence[ManifestRow], source: Source, database: str) -> None:
    """Raise DataError if an image was drawn from the mask of a test image: networks would be told the answers.

    Those of `sonoshard evaluate` are. test: images with masks.
    """
    drawn_from = {
        mask_HW.tobytes(): file for mask_HW, file in zip(generated.class_numbers_NHW, generated.ids, strict=True)
    }
    resize = source.config.encode.resize
    for row in test:
        # At the model's resolution first, as it was drawn.
        drawn = hint_of(row, source.manifest.palette, resolution_of(source.config.model), resize)
        mask_HW = np.asarray(resized(drawn, source.resolution, resize, Image.Resampling.NEAREST))
        if mask_HW.any() and mask_HW.tobytes() in drawn_from:
            raise DataError(
                f"{drawn_from[mask_HW.tobytes()]} was drawn from the mask of {row.key}, a test image of {database},"
                " needed masks of training images: leave --images out, or draw from those"
            )


def _dice(
    training: MaskedImages, test: MaskedImages, palette: Sequence[str], settings: SegmenterConfig
) -> NDArray[np.float64]:
    """Return the Dice of each test image, mean over the classes of its mask, [N]; NaN where it is empty."""
    trained = train_segmenter(training.images_NHW, training.class_numbers_NHW, palette, settings)
    found = np.full(len(test), np.nan)
    for place, predicted_HW in enumerate(trained.predict(test.images_NHW)):
        wanted_HW = test.class_numbers_NHW[place]
        of_class = [dice(predicted_HW, wanted_HW, int(number)) for number in np.unique(wanted_HW) if number]
        if of_class:
            found[place] = np.mean(of_class)
    return found


def _mean(dice_SN: NDArray[np.float64], places: NDArray[np.intp]) -> NDArray[np.float64]:
    mean_S: NDArray[np.float64] = dice_SN[:, places].mean(axis=1)
    return mean_S


def _masked(generated: GeneratedImages) -> MaskedImages:
    masks = [mask for mask in generated.masks if mask is not None]
    return MaskedImages(generated.images_NHW, np.stack(masks), generated.files, generated.files)


def _united(one: MaskedImages, other: MaskedImages) -> MaskedImages:
    return MaskedImages(
        np.concatenate([one.images_NHW, other.images_NHW]),
        np.concatenate([one.class_numbers_NHW, other.class_numbers_NHW]),
        one.ids + other.ids,
        one.clusters + other.clusters,
    )
