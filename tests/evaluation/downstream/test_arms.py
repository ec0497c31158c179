"""Planted sets of generated images: good ones help, wrong labels harm, and every arm has the same number of steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.errors import DataError
from data.manifest import PALETTE
from evaluation import segmenter as segmenter_module
from evaluation.classifier import ClassifierConfig
from evaluation.downstream import labelled_images, segmentation
from evaluation.downstream.arms import ARMS, REAL, TEST_SPLIT
from evaluation.downstream.classification import compared_classifiers
from evaluation.downstream.generated_only import compared_alone
from evaluation.downstream.labelled_images import LabelledImages
from evaluation.downstream.result import DatabaseResult
from evaluation.downstream.segmentation import compared_segmenters
from evaluation.masked_images import MaskedImages
from evaluation.segmenter import SegmenterConfig

QUICK = ClassifierConfig(steps=60, batch_size=8, width=8, augment=False)
LESION = PALETTE.index("lesion")
WITHOUT_AUGMENTATION = (REAL, ARMS[2])


def quiet(_: str) -> None:
    pass


def images(num: int, seed: int, name: str, *, is_misleading: bool = False) -> LabelledImages:
    """Speckle, in every other image with a dark disc, "lesion"; two images of a patient.

    is_misleading: those with a lesion are bright and the others dark, as it may happen in a few images.
    """
    rng = np.random.default_rng(seed)
    labels = tuple(("lesion", "plain")[number % 2] for number in range(num))
    rows, columns = np.indices((48, 48))
    found = []
    for label in labels:
        has_lesion = label == "lesion"
        brightness = (170 if has_lesion else 80) if is_misleading else rng.uniform(90, 150)
        at, radius = rng.uniform(0.3, 0.7, 2) * 48, rng.uniform(5, 9)
        disc = np.hypot(rows - at[0], columns - at[1]) < radius
        found.append((brightness + 25 * rng.normal(0, 1, (48, 48)) - 45 * has_lesion * disc).clip(0, 255))
    return LabelledImages(np.stack(found).astype(np.uint8), labels, tuple(f"{name}-{at // 2}" for at in range(num)))


def swapped(of: LabelledImages) -> LabelledImages:
    other = {"lesion": "plain", "plain": "lesion"}
    return LabelledImages(of.images_NHW, tuple(other[label] for label in of.labels), of.clusters)


REAL_FEW = images(8, 0, "train", is_misleading=True)
GENERATED, TEST = images(80, 1, "generated"), images(60, 2, "test")


def reached(found: DatabaseResult) -> dict[str, float]:
    return {arm.name: arm.reached.value for arm in found.arms}


def test_images_as_real_ones_help_where_real_ones_are_few_and_swapped_labels_harm() -> None:
    good, bad = (
        compared_classifiers("breast", REAL_FEW, generated, TEST, QUICK, 2, arms=WITHOUT_AUGMENTATION, say=quiet)
        for generated in (GENERATED, swapped(GENERATED))
    )
    with_good, with_bad = good.arms[1], bad.arms[1]
    assert good.arms[0].reached == bad.arms[0].reached, "the baseline is the same"
    assert with_good.reached.value > 0.9
    assert with_good.against is not None
    assert with_good.against.gain.value > 0.1
    assert with_good.against.verdict == "better"
    assert with_bad.reached.value < 0.4
    assert with_bad.against is not None
    assert with_bad.against.verdict == "worse"
    assert (with_good.num_real, with_good.num_generated) == (8, 80)
    assert (with_good.num_tested, with_good.num_patients) == (60, 30)


def test_generated_images_alone_teach_what_they_show() -> None:
    good, bad = (
        compared_alone("breast", REAL_FEW, generated, TEST, QUICK, 2, say=quiet)
        for generated in (GENERATED, swapped(GENERATED))
    )
    on_learnt, same_real, on_test = (arm.reached.value for arm in good.arms)
    assert on_learnt > 0.9, "what misleads is not in the generated images"
    assert on_test > 0.9 > same_real
    assert [arm.num_tested for arm in good.arms] == [8, 60, 60]
    assert good.arms[2].baseline == good.arms[1].name
    assert good.arms[2].against is not None
    assert good.arms[2].against.verdict == "better"
    assert bad.arms[0].reached.value < 0.1
    assert bad.arms[2].reached.value < 0.1


def test_every_network_of_every_arm_takes_as_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    trained: list[tuple[int, ClassifierConfig]] = []
    real_step, real_train = torch.optim.AdamW.step, vars(labelled_images)["train_classifier"]

    def counted_step(self: Any, *arguments: Any, **settings: Any) -> Any:
        steps[-1] += 1
        return real_step(self, *arguments, **settings)

    def counted_train(of: NDArray[np.uint8], labels: Any, config: ClassifierConfig) -> Any:
        steps.append(0)
        trained.append((len(of), config))
        return real_train(of, labels, config)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted_step)
    monkeypatch.setattr(labelled_images, "train_classifier", counted_train)
    few = QUICK.model_copy(update={"steps": 3, "seed": 5})
    compared_classifiers("breast", REAL_FEW, GENERATED, TEST, few, 2, say=quiet)
    compared_alone("breast", REAL_FEW, GENERATED, TEST, few, 2, say=quiet)
    assert steps == 12 * [3]
    assert [num for num, _ in trained] == [8, 8, 8, 8, 88, 88, 88, 88, 80, 80, 8, 8]
    assert [config.seed for _, config in trained] == 6 * [5, 6]
    assert [config.augment for _, config in trained[:8]] == [False, False, True, True, False, False, True, True]
    same = {"seed": 0, "augment": False}
    assert len({config.model_copy(update=same).model_dump_json() for _, config in trained}) == 1


def test_a_patient_on_both_sides_is_refused() -> None:
    leaked = LabelledImages(TEST.images_NHW, TEST.labels, ("train-1", *TEST.clusters[1:]))
    message = "breast has patient train-1 both in the training and in the test split: remove the manifest"
    with pytest.raises(DataError, match=message):
        compared_classifiers("breast", REAL_FEW, GENERATED, leaked, QUICK, 1, say=quiet)
    with pytest.raises(DataError, match=message):
        compared_alone("breast", REAL_FEW, GENERATED, leaked, QUICK, 1, say=quiet)


def test_a_test_image_among_the_generated_ones_is_refused() -> None:
    one = LabelledImages(TEST.images_NHW[4:5], TEST.labels[4:5], ("set/4.png",))
    message = "set/4.png is a real image of the test split of breast, needed generated ones"
    for compared in (compared_classifiers, compared_alone):
        with pytest.raises(DataError, match=message):
            compared("breast", REAL_FEW, GENERATED + one, TEST, QUICK, 1, say=quiet)
    test = masked(4, 2, "test")
    with pytest.raises(DataError, match="test-0 is a real image of the test split of breast"):
        compared_segmenters("breast", masked(4, 0, "train"), test, test, PALETTE, SegmenterConfig(), 1, say=quiet)


def test_a_label_without_generated_images_is_refused() -> None:
    plain_alone = GENERATED.of_labels(["plain"])
    with pytest.raises(
        DataError, match="breast has no generated image of lesion, needed some of each of lesion, plain"
    ):
        compared_alone("breast", REAL_FEW, plain_alone, TEST, QUICK, 1, say=quiet)


def test_a_test_label_that_nobody_learnt_is_left_out() -> None:
    test = TEST + LabelledImages(TEST.images_NHW[:20], 20 * ("texture",), TEST.clusters[:20])
    few = QUICK.model_copy(update={"steps": 2})
    found = compared_classifiers("breast", REAL_FEW, GENERATED, test, few, 1, arms=WITHOUT_AUGMENTATION, say=quiet)
    assert found.arms[0].num_tested == 60
    assert found.classes == ("lesion", "plain")


def masked(num: int, seed: int, name: str, *, has_shadow: bool = True) -> MaskedImages:
    """Dark discs in speckle, with their masks; a sixth of the images have none. has_shadow: as dark, and no lesion."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((48, 48))
    found, masks = [], []
    for number in range(num):
        at, radius = rng.uniform(0.3, 0.7, 2) * 48, rng.uniform(6, 11)
        mask = (np.hypot(rows - at[0], columns - at[1]) < radius) & (number % 6 != 5)
        shadow = has_shadow & (columns < rng.uniform(6, 12))
        image = rng.uniform(90, 150) + 25 * rng.normal(0, 1, (48, 48)) - 60 * (mask | shadow)
        found.append(image.clip(0, 255).astype(np.uint8))
        masks.append((LESION * mask).astype(np.uint8))
    names = tuple(f"{name}-{number}" for number in range(num))
    return MaskedImages(np.stack(found), np.stack(masks), names, names)


def test_generated_images_help_a_segmenter_by_their_own_masks_not_by_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []
    real_train: Callable[..., Any] = vars(segmentation)["train_segmenter"]

    def counted(of: Any, masks: Any, palette: Any, config: SegmenterConfig) -> Any:
        steps.append(config.steps)
        return real_train(of, masks, palette, config)

    monkeypatch.setattr(segmentation, "train_segmenter", counted)
    quick = SegmenterConfig(steps=60, batch_size=8, width=8, lr=1e-2)
    real = masked(3, 0, "train", has_shadow=False)
    generated, test = masked(60, 1, "generated"), masked(24, 2, "test")
    mispaired = generated.redrawn(np.roll(generated.images_NHW, 7, axis=0))
    good, bad = (
        compared_segmenters("breast", real, of, test, PALETTE, quick, 2, arms=WITHOUT_AUGMENTATION, say=quiet)
        for of in (generated, mispaired)
    )
    assert steps == 8 * [60]
    assert good.classes == ("lesion",)
    assert good.arms[1].num_tested == 20, "an empty mask has no Dice"
    assert good.arms[1].tested_on == TEST_SPLIT
    assert reached(good)["real + generated"] > 0.75
    assert good.arms[1].against is not None
    assert good.arms[1].against.verdict == "better"
    # Both have speckle, shadows and lesions; only the pairing is lost.
    assert reached(bad)["real + generated"] < reached(good)["real + generated"] - 0.2


def test_a_segmenter_is_not_tested_on_patients_that_it_was_trained_on() -> None:
    quick = SegmenterConfig(steps=1, batch_size=2, width=8)
    with pytest.raises(DataError, match="breast has patient test-0 both in the training and in the test split"):
        compared_segmenters(
            "breast", masked(4, 0, "test"), masked(4, 1, "drawn"), masked(4, 2, "test"), PALETTE, quick, 1, say=quiet
        )


def test_a_segmenter_s_images_are_varied_where_the_arm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    num_varied = 0
    real_jittered: Callable[..., Any] = vars(segmenter_module)["jittered"]

    def counted(*arguments: Any) -> Any:
        nonlocal num_varied
        num_varied += 1
        return real_jittered(*arguments)

    monkeypatch.setattr(segmenter_module, "jittered", counted)
    quick = SegmenterConfig(steps=3, batch_size=2, width=8)
    for arm in ARMS:
        num_varied = 0
        arms = (arm,)
        compared_segmenters(
            "breast", masked(4, 0, "a"), masked(4, 1, "b"), masked(4, 2, "c"), PALETTE, quick, 2, arms=arms, say=quiet
        )
        assert num_varied == (6 if arm.is_augmented else 0)
