"""The report finds what was planted, by the measure meant for it, and nothing in images of the same simulator."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from data.errors import DataError
from data.manifest import Manifest
from data.simulate import simulate
from evaluation import judgement, mask_judgement, report
from evaluation.classifier import ClassifierConfig, train_classifier
from evaluation.generated_images import COLUMNS, LABELS_FILE
from evaluation.reconstruction import reconstructed
from evaluation.report import evaluate_run
from evaluation.segmenter import SegmenterConfig, train_segmenter
from launch.cli import app
from launch.config import RunConfig
from tests.evaluation.prepared_run import prepared_run

SIZE, NUM_GENERATED = 64, 60
CONFIG = """\
run: {folder}/run
model: {{base: tiny}}
databases:
  breast: {{kind: simulated, preset: breast, size: 64, count: 200, seed: 0}}
prepare: {{validation_fraction: 0.2, test_fraction: 0.2}}
stages:
  - {{name: one, databases: [breast], steps: 20}}
"""
CLASSIFIER, SEGMENTER = ClassifierConfig(steps=100), SegmenterConfig(steps=80, width=8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return prepared_run(tmp_path_factory.mktemp("report"), CONFIG)


@pytest.fixture(scope="module")
def memory() -> dict[str, Any]:
    """What was made of the real images: it is the same for all sets of generated ones."""
    return {}


@pytest.fixture
def made_once(memory: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and reconstruct quickly, and only once."""

    def once(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any) -> Any:
            if name not in memory:
                memory[name] = make(*arguments)
            return memory[name]

        return made

    def quick_classifier(images: Any, labels: Any, _: Any) -> Any:
        return train_classifier(images, labels, CLASSIFIER)

    def quick_segmenter(images: Any, masks: Any, classes: Any, _: Any) -> Any:
        return train_segmenter(images, masks, classes, SEGMENTER)

    monkeypatch.setattr(report, "reconstructed", once("reconstructed", reconstructed))
    monkeypatch.setattr(judgement, "train_classifier", once("classifier", quick_classifier))
    monkeypatch.setattr(mask_judgement, "train_segmenter", once("segmenter", quick_segmenter))


@pytest.fixture
def judged(config: RunConfig, made_once: None, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Judges a set of images by its name; gives metrics.json."""

    def judge(name: str) -> dict[str, Any]:
        folder = write(tmp_path / name, *SETS[name](config))
        left = evaluate_run(config, 2 * NUM_GENERATED + 40, images=folder, say=lambda _: None)
        found: dict[str, Any] = json.loads(left.metrics.read_text(encoding="utf-8"))
        return found

    return judge


Set = tuple[NDArray[np.uint8], list[str], NDArray[np.uint8]]


def others(_: RunConfig) -> Set:
    """Images of the same simulator that are in no split: what a perfect generator draws."""
    found = [simulate("breast", 1, index, SIZE) for index in range(NUM_GENERATED)]
    return np.stack([of.image for of in found]), [of.label for of in found], np.stack([of.mask for of in found])


def changed(change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Callable[[RunConfig], Set]:
    def of(config: RunConfig) -> Set:
        images_NHW, labels, masks_NHW = others(config)
        return change(images_NHW.astype(np.float64)).clip(0, 255).astype(np.uint8), labels, masks_NHW

    return of


def noise(images_NHW: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(0, 255, images_NHW.shape)


def swapped_labels(config: RunConfig) -> Set:
    images_NHW, labels, masks_NHW = others(config)
    return (
        images_NHW,
        [{"normal": "benign", "benign": "malignant", "malignant": "normal"}[of] for of in labels],
        masks_NHW,
    )


def ignored_masks(config: RunConfig) -> Set:
    """Each image beside the mask of the next one that has the class, as if drawn without looking at it."""
    images_NHW, labels, masks_NHW = others(config)
    places = np.flatnonzero(masks_NHW.any(axis=(1, 2)))
    masks_NHW[places] = masks_NHW[np.roll(places, 1)]
    return images_NHW, labels, masks_NHW


def copies(config: RunConfig) -> Set:
    """Every image of eight training patients, mirrored or not, with a little noise."""
    rows = [row for row in Manifest.read(config.manifest_path).rows if row.split == "train"][:8]
    rng = np.random.default_rng(0)
    images, labels = [], []
    for number in range(NUM_GENERATED):
        row = rows[number % 8]
        with Image.open(row.image) as picture:
            image = np.asarray(picture.convert("L"), np.float64)[:, :: 1 if number % 3 else -1]
        images.append((image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8))
        labels.append(row.label)
    return np.stack(images), labels, np.zeros((NUM_GENERATED, SIZE, SIZE), np.uint8)


def three_copies(config: RunConfig) -> Set:
    """Three training images as they are, among 160."""
    found = [simulate("breast", 1, index, SIZE) for index in range(157)]
    rows = [row for row in Manifest.read(config.manifest_path).rows if row.split == "train"][:3]
    images = [*(of.image for of in found), *(np.asarray(Image.open(row.image).convert("L")) for row in rows)]
    labels = [*(of.label for of in found), *(row.label for row in rows)]
    return np.stack(images), labels, np.stack([*(of.mask for of in found), *np.zeros((3, SIZE, SIZE), np.uint8)])


def majority_alone(config: RunConfig) -> Set:
    """Normal images, whatever was asked for."""
    images_NHW, labels, masks_NHW = others(config)
    normal = [place for place, label in enumerate(labels) if label == "normal"]
    chosen = np.resize(normal, NUM_GENERATED)
    return images_NHW[chosen], labels, masks_NHW[chosen]


SETS: dict[str, Callable[[RunConfig], Set]] = {
    "others": others,
    "noise": changed(noise),
    "blurred": changed(lambda images: gaussian_filter(images, (0, 1.2, 1.2))),
    "swapped labels": swapped_labels,
    "ignored masks": ignored_masks,
    "copies": copies,
    "three copies": three_copies,
    "majority alone": majority_alone,
}


def write(folder: Path, images_NHW: NDArray[np.uint8], labels: list[str], masks_NHW: NDArray[np.uint8]) -> Path:
    """Write images as `sonoshard sample` does."""
    folder.mkdir()
    with (folder / LABELS_FILE).open("w", encoding="utf-8", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(COLUMNS)
        for number, (image, label, mask) in enumerate(zip(images_NHW, labels, masks_NHW, strict=True)):
            Image.fromarray(image).save(folder / f"{number}.png")
            Image.fromarray(mask).save(folder / f"{number}_mask.png")
            rows.writerow((f"{number}.png", label, "breast", "", number, f"{number}_mask.png"))
    return folder


STATISTICS, FEATURES, LABELS = "breast: ultrasound statistics", "breast: features", "breast: labels"
MASK, COPIES = "breast: mask of lesion", "copies of training images"


def levels(found: dict[str, Any]) -> dict[str, str]:
    return {of: verdict["level"] for of, verdict in found["verdicts"].items()}


def test_images_of_the_same_simulator_have_nothing_wrong(judged: Callable[[str], dict[str, Any]]) -> None:
    found = judged("others")
    assert levels(found) == dict.fromkeys((STATISTICS, FEATURES, LABELS, MASK, COPIES), "good")
    breast = found["databases"]["breast"]
    assert (breast["num_generated"], breast["num_real"]) == (NUM_GENERATED, 80)
    assert found["masks"]["breast"]["classes"]["lesion"]["generated"]["num_images"] > 20


def test_real_images_of_patients_that_calibrated_nothing_are_no_copies(
    config: RunConfig, made_once: None, tmp_path: Path
) -> None:
    manifest = Manifest.read(config.manifest_path)
    judged = [row for row in manifest.rows if row.split == "test"]
    apart = config.model_copy(update={"run": tmp_path / "run"})
    replace(manifest, rows=tuple(row for row in manifest.rows if row.split != "test")).write(apart.manifest_path)
    images_NHW = np.stack([np.asarray(Image.open(row.image).convert("L")) for row in judged])
    labels = [row.label for row in judged]
    drawn = write(tmp_path / "real", images_NHW, labels, np.zeros_like(images_NHW))
    left = evaluate_run(apart, 40, images=drawn, say=lambda _: None)
    assert left.verdicts[COPIES].level in ("good", "fair")
    found = json.loads(left.metrics.read_text(encoding="utf-8"))["memorisation"]
    for space in ("pixels", "features"):
        assert found[space]["databases"]["breast"]["num_patients"] == 20
        assert (found[space]["num_copies"], found[space]["is_flagged"]) == (0, False)


def test_three_verbatim_copies_among_160_images_are_not_good(judged: Callable[[str], dict[str, Any]]) -> None:
    found = judged("three copies")
    assert found["verdicts"][COPIES]["level"] == "bad"
    assert found["memorisation"]["pixels"]["num_copies"] == found["memorisation"]["features"]["num_copies"] == 3
    assert not found["memorisation"]["pixels"]["is_flagged"], "by their number alone they would have passed"
    assert {pair["file"] for pair in found["memorisation"]["worst"][:3]} == {"157.png", "158.png", "159.png"}


@pytest.mark.parametrize(
    ("name", "wrong", "as_ever"),
    [
        ("noise", {STATISTICS, FEATURES}, {COPIES}),
        ("blurred", {STATISTICS}, {COPIES}),
        ("majority alone", {LABELS}, {COPIES}),
        ("swapped labels", {LABELS}, {STATISTICS, FEATURES, MASK, COPIES}),
        ("ignored masks", {MASK}, {STATISTICS, FEATURES, LABELS, COPIES}),
        ("copies", {COPIES}, set()),
    ],
)
def test_what_was_planted_is_found_by_the_measure_meant_for_it(
    judged: Callable[[str], dict[str, Any]], name: str, wrong: set[str], as_ever: set[str]
) -> None:
    found = levels(judged(name))
    assert {of for of in wrong if found[of] == "bad"} == wrong
    assert {found[of] for of in as_ever} <= {"good"}


def test_the_page_the_command_and_the_curves(config: RunConfig, made_once: None, tmp_path: Path) -> None:
    images_NHW, labels, masks_NHW = others(config)
    folder = write(tmp_path / "drawn", images_NHW[:12], labels[:12], masks_NHW[:12])
    (path := tmp_path / "config.yaml").write_text(CONFIG.format(folder=config.run.parent), encoding="utf-8")
    network = tmp_path / "network.pt"
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())), str(network))
    (tmp_path / "network.pt.json").write_text('{"side_pixels": 64, "range": "unit"}', encoding="utf-8")
    ended = CliRunner().invoke(app, ["evaluate", str(path), "--images", str(folder), "--features", str(network)])
    assert ended.exit_code == 0, ended.output
    page = config.run / "evaluation" / "folders" / "drawn" / "report.html"
    assert re.search(r"breast: mask of lesion +\S", ended.output)
    assert str(page) in ended.output
    text = page.read_text(encoding="utf-8")
    assert "network.pt (sha256" in text
    assert "The images called real here are simulated" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text), "the page needs nothing beside it"
    assert text.count('src="data:image/png;base64,') == 5
    (curves,) = (config.run / "tensorboard" / "evaluation" / "folders" / "drawn").iterdir()
    found = EventAccumulator(str(curves)).Reload().Tags()["scalars"]
    assert {"evaluation/breast/fid_generated", "evaluation/breast/dice_lesion_real", "evaluation/suspects_pixels"} <= {
        *found
    }


def test_fewer_images_of_a_folder_are_spread_evenly_and_said_to_be_fewer(
    config: RunConfig, made_once: None, tmp_path: Path
) -> None:
    """In a folder they lie class by class."""
    images_NHW, labels, masks_NHW = others(config)
    order = np.argsort(labels, kind="stable")
    folder = write(tmp_path / "sorted", images_NHW[order], [labels[place] for place in order], masks_NHW[order])
    left = evaluate_run(config, 20, images=folder, say=lambda _: None)
    found = json.loads(left.metrics.read_text(encoding="utf-8"))
    files = {int(Path(pair["file"]).stem) for pair in found["memorisation"]["worst"]}
    assert files == set(range(0, NUM_GENERATED, 3)), "all twenty are among the nearest twenty"
    assert f"20 of {NUM_GENERATED} images of the folder sorted" in left.page.read_text(encoding="utf-8")


def test_a_class_of_masks_that_no_training_image_has_is_told(
    config: RunConfig, made_once: None, tmp_path: Path
) -> None:
    images_NHW, labels, masks_NHW = others(config)
    palette = Manifest.read(config.manifest_path).palette
    masks_NHW[0, :8, :8] = palette.index("head")
    found = evaluate_run(config, images=write(tmp_path / "head", images_NHW, labels, masks_NHW), say=lambda _: None)
    assert found.verdicts["breast: mask of head"].level == "unknown"
    assert found.verdicts[MASK].level == "good"


def test_what_was_not_drawn_is_not_compared_with(tmp_path: Path, made_once: None) -> None:
    two = CONFIG.replace(
        "prepare:", "  other: {{kind: simulated, preset: fetal, size: 64, count: 40, seed: 0}}\nprepare:"
    )
    config = prepared_run(tmp_path, two)
    left = evaluate_run(config, images=write(tmp_path / "one", *others(config)), say=lambda _: None)
    page = left.page.read_text(encoding="utf-8")
    assert "other was left out: none of the images is of it" in page
    held_out = [row for row in Manifest.read(config.manifest_path).rows if row.split in ("validation", "test")]
    assert f"judged against {sum(row.database == 'breast' for row in held_out)} images" in page


def test_a_mask_of_other_numbers_is_refused_before_anything_is_trained(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement, "train_classifier", None)
    images_NHW, labels, masks_NHW = others(config)
    folder = write(tmp_path / "white", images_NHW, labels, np.where(masks_NHW, 255, 0).astype(np.uint8))
    with pytest.raises(DataError, match=r"_mask.png has the class number 255, needed those of the manifest \(0 back"):
        evaluate_run(config, images=folder, say=lambda _: None)


def test_too_few_patients_are_told_before_anything_is_drawn(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = prepared_run(tmp_path, CONFIG.replace("count: 200", "count: 12"))
    few.stage_model(few.stages[0]).mkdir(parents=True)
    (few.stage_model(few.stages[0]) / "sonoshard.json").write_text('{"steps": 1}', encoding="utf-8")  # of more
    monkeypatch.setattr(report, "draw_stage", None)
    with pytest.raises(DataError, match=r"breast have \d+ training images and [0-3] held-out patients at most, needed"):
        evaluate_run(few, say=lambda _: None)


def test_what_cannot_be_judged_is_said_in_one_line(config: RunConfig, tmp_path: Path) -> None:
    (path := tmp_path / "config.yaml").write_text(CONFIG.format(folder=config.run.parent), encoding="utf-8")

    def said(*options: str) -> str:
        ended = CliRunner().invoke(app, ["evaluate", str(path), *options])
        assert ended.exit_code == 2, ended.output
        return ended.output

    assert "has no stage with a model yet: run `sonoshard train`" in said()
    assert "stage one has no model yet: run `sonoshard train`" in said("--stage", "one")
    assert "there is no folder" in said("--images", str(tmp_path / "none"))
    assert "--reader-study and --every-stage do different things" in said("--reader-study", "--every-stage")
    assert "--every-stage takes neither --stage nor --images" in said("--every-stage", "--stage", "one")
    assert "--features is for the report" in said("--every-stage", "--features", "network.pt")
