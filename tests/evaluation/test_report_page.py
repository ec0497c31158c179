"""The report needs nothing but itself: made without a network, and read in a browser, pictures first."""

import csv
import html
import json
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.manifest import Manifest
from data.simulate import simulate
from evaluation import judgement
from evaluation.classifier import ClassifierConfig, train_classifier
from evaluation.generated_images import COLUMNS, LABELS_FILE
from evaluation.measures import MEASURES
from evaluation.real_images import RealImages
from evaluation.report import evaluate_run
from evaluation.segmenter import SegmenterConfig
from launch.config import RunConfig
from models.base import resolution_of
from tests.browser import running_browser
from tests.evaluation.prepared_run import prepared_run

SIZE, NUM_GENERATED = 64, 24
# Of the palette: background, lesion, and what a heart has.
FIRST = {"breast": 1, "cardiac": 2}
CONFIG = """\
run: {folder}/run
model: {{base: tiny}}
databases:
  breast: {{kind: simulated, preset: breast, size: 64, count: 60}}
  cardiac: {{kind: simulated, preset: cardiac, size: 64, count: 60}}
prepare: {{validation_fraction: 0.2, test_fraction: 0.2}}
stages:
  - {{name: one, databases: [breast, cardiac], steps: 20}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return prepared_run(tmp_path_factory.mktemp("page"), CONFIG)


@pytest.fixture(scope="module")
def trained_on() -> list[tuple[int, set[bytes]]]:
    """How many images each classifier was trained on, and which."""
    return []


@pytest.fixture(scope="module")
def page(config: RunConfig, trained_on: list[tuple[int, set[bytes]]]) -> Path:
    """The report of images, a third of which name no database, made while every socket is refused."""
    folder = config.run.parent / "drawn"
    (folder / "masks").mkdir(parents=True)
    with (folder / LABELS_FILE).open("w", encoding="utf-8", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(COLUMNS)
        for number in range(NUM_GENERATED):
            preset = ("breast", "cardiac", "breast")[number % 3]
            drawn, name = simulate(preset, 1, number, SIZE), f"{number:06}.png"
            Image.fromarray(drawn.image).save(folder / name)
            Image.fromarray(np.where(drawn.mask > 0, drawn.mask + FIRST[preset] - 1, 0).astype(np.uint8)).save(
                folder / "masks" / name
            )
            named = preset if number % 3 < 2 else ""
            rows.writerow((name, drawn.label, named, "", number, f"masks/{name}"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a network was asked")

    def seen(images_NHW: Any, labels: Any, settings: ClassifierConfig) -> Any:
        trained_on.append((len(images_NHW), {image.tobytes() for image in images_NHW}))
        return train_classifier(images_NHW, labels, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(judgement, "train_classifier", seen)
        return evaluate_run(
            config,
            NUM_GENERATED,
            images=folder,
            classifier=ClassifierConfig(steps=10),
            segmenter=SegmenterConfig(steps=5, width=8),
            say=lambda _: None,
        ).page


def metrics(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((page.parent / "metrics.json").read_text(encoding="utf-8"))
    return found


def test_the_default_features_are_of_a_classifier_of_training_images_alone(
    config: RunConfig, page: Path, trained_on: list[tuple[int, set[bytes]]]
) -> None:
    rows = Manifest.read(config.manifest_path).rows
    of_training, held_out = (
        {image.tobytes() for image in RealImages.read(of, config.encode, resolution_of(config.model)).images_NHW}
        for of in ([row for row in rows if row.split == "train"], [row for row in rows if row.split != "train"])
    )
    ((num, images),) = trained_on
    assert images == of_training
    assert not images & held_out
    assert metrics(page)["features"].startswith(f"a small classifier trained here on {num} real images")


def test_images_of_no_database_are_judged_as_a_group_of_their_own(page: Path) -> None:
    found = metrics(page)
    assert {name: of["num_generated"] for name, of in found["databases"].items()} == dict.fromkeys(
        ("all databases", "breast", "cardiac"), NUM_GENERATED // 3
    )
    assert set(found["masks"]) >= {"all databases", "breast"}, "their masks are judged too"
    assert found["databases"]["all databases"]["num_real"] == sum(
        found["databases"][name]["num_real"] for name in ("breast", "cardiac")
    )
    assert set(found["memorisation"]["pixels"]["databases"]) == {"all databases", "breast", "cardiac"}


def test_each_measure_says_what_good_is_and_its_source(page: Path) -> None:
    text = " ".join(html.unescape(page.read_text(encoding="utf-8")).split())
    for name, measure in MEASURES.items():
        assert measure.good in text, name
        assert measure.source in text, name
        assert metrics(page)["measures"][name]["source"] == measure.source
    assert "95 % interval" not in text


def test_a_folder_named_as_a_stage_leaves_the_stages_report_alone(config: RunConfig, page: Path) -> None:
    assert page == config.run / "evaluation" / "folders" / "drawn" / "report.html"
    assert not (config.run / "evaluation" / "drawn").exists()


def test_a_browser_shows_all_of_it_pictures_first(page: Path, tmp_path: Path) -> None:
    with running_browser(tmp_path) as browser:
        browser.open(page.as_uri())
        num = browser.evaluate("Promise.all([...document.images].map(of => of.decode())).then(all => all.length)")
        assert num == len(re.findall("<img", page.read_text(encoding="utf-8"))) >= 10
        assert browser.evaluate("[...document.images].every(of => of.naturalWidth > 100 && of.alt)")
        before = "a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING"
        assert browser.evaluate(
            "[...document.querySelectorAll('table')].every(b => [...document.querySelectorAll('figure img')]"
            f".slice(0, 6).every(a => {before}))"
        ), "generated and real images of three groups stand before the first table"
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
        assert browser.requests() == [page.as_uri()]
        assert browser.complaints() == []
