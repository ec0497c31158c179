"""The experiments of a run: whose prompts and masks are drawn, what is kept, the files, the tables, the command."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from data.hints import hint_images
from data.manifest import Manifest, ManifestRow
from data.preprocessing import hint_of
from data.shards import ShardSet
from evaluation import stage_images
from evaluation.classifier import ClassifierConfig
from evaluation.downstream import classification as classification_module
from evaluation.downstream.arms import ARMS
from evaluation.downstream.classification import classification
from evaluation.downstream.experiment import run_experiment
from evaluation.downstream.generated_only import GENERATED_ALONE, LEARNT, generated_only
from evaluation.downstream.labelled_images import LabelledImages
from evaluation.downstream.learnt_rows import learnt_rows
from evaluation.downstream.paired import Difference
from evaluation.downstream.result import ArmResult, DatabaseResult, Downstream, result_path
from evaluation.downstream.segmentation import segmentation
from evaluation.downstream.source import source_of
from evaluation.downstream.table import print_downstream, signed_percent
from evaluation.intervals import Interval
from evaluation.segmenter import SegmenterConfig
from evaluation.stage_images import draw_stage
from launch.cli import app
from launch.config import RunConfig, load_config
from launch.facts import stage_parts
from launch.prepare import encode_databases, prepare_databases
from launch.run_shards import shards_folder
from tests.tiny_random_model import write_tiny_random_model

CONFIG = """\
run: {folder}/run
model: {{base: {base}/model}}
databases:
  breast: {{kind: simulated, preset: breast, size: 64, count: 60}}
  few: {{kind: simulated, preset: breast, size: 64, count: 8, seed: 1}}
prepare: {{validation_fraction: 0.2, test_fraction: 0.3}}
stages:
  - {{name: one, databases: [breast, few], steps: 20}}
  - {{name: share, databases: [breast], fraction: 0.4, steps: 20, start: base}}
  - {{name: masks, kind: controlnet, databases: [breast], steps: 20}}
  - {{name: unfinished, databases: [breast], steps: 20, start: one}}
"""
QUICK = ClassifierConfig(steps=2, batch_size=4, width=8)
QUICK_SEGMENTER = SegmenterConfig(steps=2, batch_size=4, width=8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoded run, with the records of three stages and no models."""
    folder = tmp_path_factory.mktemp("downstream")
    write_tiny_random_model(folder / "model")
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, base=folder), encoding="utf-8")
    config = load_config(folder / "config.yaml")
    prepare_databases(config)
    encode_databases(config)
    for stage in config.stages[:3]:
        config.stage_model(stage).mkdir(parents=True)
        (config.stage_model(stage) / "sonoshard.json").write_text('{"steps": 20}', encoding="utf-8")
    return folder


@pytest.fixture
def path(prepared: Path, tmp_path: Path) -> Path:
    """The configuration of a copy of `prepared`."""
    shutil.copytree(prepared / "run", tmp_path / "run")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, base=prepared), encoding="utf-8")
    return path


@pytest.fixture
def config(path: Path) -> RunConfig:
    return load_config(path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of the models, call by call; they draw noise, the brighter the longer the prompt."""
    calls: list[dict[str, Any]] = []

    def load(model: Any, *_: Any) -> str:
        return str(model.base)

    def sample(
        pipeline: str, prompts: Sequence[str], seeds: Sequence[int], _: Any, *, hints_N3HW: Any, height: int, width: int
    ) -> NDArray[np.uint8]:
        calls.append({"model": pipeline, "prompts": prompts, "seeds": list(seeds), "hints": hints_N3HW})
        rng = np.random.default_rng(seeds[0])
        levels = np.array([len(prompt) for prompt in prompts])[:, None, None, None]
        noise = rng.integers(0, 90, (len(prompts), height, height, 1)) + levels
        return noise.clip(0, 255).astype(np.uint8).repeat(3, axis=3)

    for name in ("load_pipeline", "load_control_pipeline"):
        monkeypatch.setattr(stage_images, name, load)
    monkeypatch.setattr(stage_images, "sample", sample)
    return calls


def quiet(_: str) -> None:
    pass


def rows_of(config: RunConfig, split: str, database: str = "breast") -> list[ManifestRow]:
    rows = Manifest.read(config.manifest_path).rows
    return [row for row in rows if row.database == database and row.split == split]


def prompts_of(drawn: list[dict[str, Any]]) -> Counter[str]:
    return Counter(prompt for call in drawn for prompt in call["prompts"])


def test_training_prompts_are_drawn_as_often_as_training_images_have_them(
    config: RunConfig, drawn: list[dict[str, Any]]
) -> None:
    found = classification(source_of(config, "one", None, None, quiet), QUICK, num_seeds=2)
    training, test = rows_of(config, "train"), rows_of(config, "test")
    assert prompts_of(drawn) == Counter(row.prompts[0] for row in training)
    folder = config.run / "evaluation" / "one" / "training-breast"
    with (folder / "labels.csv").open(encoding="utf-8") as stream:
        labels = Counter(row["label"] for row in csv.DictReader(stream))
    assert labels == Counter(row.label for row in training)
    assert found.images_of == "stage one"
    (database,) = found.databases
    assert [arm.name for arm in database.arms] == [*("real", "real + augmentation", "real + generated", "real + both")]
    assert [(arm.num_real, arm.num_generated) for arm in database.arms] == [
        *2 * [(len(training), 0)],
        *2 * [(len(training), len(training))],
    ]
    assert all(arm.num_tested == len(test) and len(arm.of_seeds) == 2 for arm in database.arms)
    assert all((arm.against is None) == (arm.name == "real") for arm in database.arms)
    assert list(found.left_out) == ["few"]
    assert "patients of" in found.left_out["few"]


def test_no_test_patient_is_trained_on_and_none_else_is_tested(
    config: RunConfig, drawn: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[LabelledImages, LabelledImages]] = []
    real_compared = classification_module.compared_classifiers

    def watched(
        database: str, real: LabelledImages, generated: Any, test: LabelledImages, *rest: Any, **more: Any
    ) -> Any:
        seen.append((real, test))
        return real_compared(database, real, generated, test, *rest, **more)

    monkeypatch.setattr(classification_module, "compared_classifiers", watched)
    classification(source_of(config, "one", None, 4, quiet), QUICK, num_seeds=1)
    ((real, test),) = seen
    assert set(real.clusters) == {row.cluster for row in rows_of(config, "train")}
    assert set(test.clusters) == {row.cluster for row in rows_of(config, "test")}
    assert not set(real.clusters) & set(test.clusters)


def test_images_are_drawn_once_and_those_for_the_report_are_others(
    config: RunConfig, drawn: list[dict[str, Any]]
) -> None:
    report = draw_stage(config, config.stages[0], 4, quiet)
    held_out = {row.prompts[0] for split in ("validation", "test") for row in rows_of(config, split)}
    held_out |= {row.prompts[0] for split in ("validation", "test") for row in rows_of(config, split, "few")}
    assert set(prompts_of(drawn)) <= held_out
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    drawn.clear()
    first = classification(source_of(config, "one", None, 6, quiet), QUICK, num_seeds=1)
    assert [seed for call in drawn for seed in call["seeds"]] == list(range(6))
    drawn.clear()
    again = classification(source_of(config, "one", None, 6, quiet), QUICK, num_seeds=1)
    assert again == first
    assert drawn == []
    more = classification(source_of(config, "one", None, 8, quiet), QUICK, num_seeds=1)
    assert [seed for call in drawn for seed in call["seeds"]] == [6, 7]
    assert more.databases[0].arms[2].num_generated == 8
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before
    text = result_path(config, "classification", "stage one").read_text(encoding="utf-8")
    assert Downstream.model_validate_json(text) == more, "an earlier file is written over"


def test_a_share_is_the_patients_that_training_takes(config: RunConfig, drawn: list[dict[str, Any]]) -> None:
    share = config.stages[1]
    rows = learnt_rows(config, share, Manifest.read(config.manifest_path).rows, "breast")
    training = rows_of(config, "train")
    shards = ShardSet.open(shards_folder(config))
    hashes = shards.entries("breast", "train").image_hashes()[stage_parts(config, share, shards)["breast"]]
    assert {row.sha256 for row in rows} == set(hashes)
    left = {row.cluster for row in training} - {row.cluster for row in rows}
    assert len(left) > 0
    assert not left & {row.cluster for row in rows}
    assert 0.4 * len(training) <= len(rows) <= 0.4 * len(training) + 2, "patients have two images"

    found = generated_only(source_of(config, "share", None, None, quiet, needs_stage=True), QUICK, num_seeds=2)
    assert set(prompts_of(drawn)) <= {row.prompts[0] for row in rows}
    assert sum(prompts_of(drawn).values()) == len(training), "as many as the database has, so more than were learnt"
    on_learnt, same_real, on_test = found.databases[0].arms
    assert (on_learnt.tested_on, on_learnt.num_tested) == (LEARNT, len(rows))
    assert (same_real.num_real, same_real.num_generated) == (len(rows), 0)
    assert on_test.num_tested == same_real.num_tested == len(rows_of(config, "test"))
    assert (on_test.num_real, on_test.num_generated) == (0, len(training))


def test_a_stage_has_learnt_from_what_the_one_before_it_has(config: RunConfig) -> None:
    masks = config.stages[2]
    only = masks.model_copy(update={"fraction": 0.1})
    later = config.model_copy(update={"stages": [*config.stages[:2], only]})
    manifest = Manifest.read(config.manifest_path)
    assert learnt_rows(later, only, manifest.rows, "breast") == learnt_rows(
        config, config.stages[1], manifest.rows, "breast"
    ), "a tenth lies within the share that it goes on from"
    assert learnt_rows(config, masks, manifest.rows, "breast") == rows_of(config, "train")


def test_a_segmenter_s_images_are_drawn_from_training_masks(config: RunConfig, drawn: list[dict[str, Any]]) -> None:
    found = segmentation(source_of(config, None, None, None, quiet, has_hints=True), QUICK_SEGMENTER, num_seeds=2)
    assert found.images_of == "stage masks", "the last one that draws from masks"
    palette = Manifest.read(config.manifest_path).palette

    def hints(rows: Sequence[ManifestRow]) -> set[bytes]:
        masks = [np.asarray(hint_of(row, palette, 64, config.encode.resize)) for row in rows]
        return {hint.tobytes() for mask, hint in zip(masks, hint_images(np.stack(masks)), strict=True) if mask.any()}

    asked = {hint.numpy().tobytes() for call in drawn for hint in call["hints"] if len(hint.unique()) > 1}
    assert asked == hints(rows_of(config, "train"))
    assert not asked & hints(rows_of(config, "test"))
    (database,) = found.databases
    assert database.classes == ("lesion",)
    num_masked = sum(row.label != "normal" for row in rows_of(config, "test"))
    assert {arm.num_tested for arm in database.arms} == {num_masked}
    assert [arm.num_generated for arm in database.arms] == [
        0,
        0,
        len(rows_of(config, "train")),
        len(rows_of(config, "train")),
    ]
    assert result_path(config, "segmentation", "stage masks").is_file()


def test_images_that_were_drawn_from_test_masks_are_refused(
    path: Path, config: RunConfig, drawn: list[dict[str, Any]]
) -> None:
    """Those that `evaluate` draws, which are of held-out images."""
    folder = draw_stage(config, config.stages[2], 20, quiet)
    result = CliRunner().invoke(app, ["downstream", str(path), "segmentation", "--images", str(folder)])
    assert result.exit_code == 2
    assert re.search(
        r"\.png was drawn from the mask of \S+, a test image of breast, needed masks of training images", result.stderr
    )
    assert len(result.stderr.splitlines()) == 1


def test_a_database_that_a_folder_has_nothing_of_is_left_out(
    path: Path, config: RunConfig, drawn: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Told before the others are trained on, and their results are kept."""
    rows = [row(0, "benign"), row(1, "malignant")]
    found = classification(source_of(config, None, folder_of(tmp_path / "set", rows), None, quiet), QUICK, num_seeds=1)
    assert [each.name for each in found.databases] == ["breast"]
    assert "set has 0 images of it, needed 2" in found.left_out["few"]


def folder_of(
    folder: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] = ("file", "label", "database", "mask")
) -> Path:
    folder.mkdir()
    for row in rows:
        Image.fromarray(np.full((64, 64), 90, np.uint8)).save(folder / row["file"])
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def row(number: int, label: str, database: str = "breast") -> dict[str, str]:
    return {"file": f"{number}.png", "label": label, "database": database, "mask": ""}


def test_images_of_a_folder(config: RunConfig, tmp_path: Path) -> None:
    rows = [row(0, "benign"), row(1, "malignant"), row(2, "normal"), row(3, "benign", "few")]
    found = classification(source_of(config, None, folder_of(tmp_path / "set", rows), None, quiet), QUICK, num_seeds=1)
    assert found.images_of == "folder set"
    assert found.databases[0].arms[2].num_generated == 3, "the other one is of another database"


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([row(0, ""), row(1, "")], [], "does not say which labels its images were drawn with, needed a labels.csv"),
        ([row(0, "benign"), row(1, "cyst")], [], "folder set has 1.png of label cyst, needed one that training images"),
        ([row(0, "benign"), row(1, "")], [], "folder set has 1.png of label (none), needed one that training images"),
        (
            [row(0, "benign"), row(1, "normal", "few")],
            [],
            "set has 1 images of it, needed 2 (draw more, or name",
        ),
        (
            [row(0, "benign"), row(1, "normal")],
            ["--num-images", "3"],
            "set has 2 images of it, --num-images asks for 3",
        ),
        (
            [row(0, "benign"), row(1, "normal")],
            ["--stage", "one"],
            "--stage draws images and --images takes those of a",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(
    path: Path, tmp_path: Path, rows: list[dict[str, str]], arguments: list[str], message: str
) -> None:
    folder = folder_of(tmp_path / "set", rows)
    result = CliRunner().invoke(app, ["downstream", str(path), "classification", "--images", str(folder), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classification", "--stage", "unfinished"], "stage unfinished has no model yet: run `sonoshard train`"),
        (["classification", "--stage", "none"], "there is no stage none; there are one, share, masks, unfinished"),
        (["segmentation", "--stage", "one"], "stage one draws from prompts alone, needed one of kind controlnet"),
        (["classification", "run={empty}"], "run `sonoshard prepare` first"),
        (["segmentation", "stages.2.name=later"], "has no controlnet stage with a model yet: run `sonoshard train`"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    path: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    words = [word.replace("{empty}", str(tmp_path / "empty")) for word in arguments]
    result = CliRunner().invoke(app, ["downstream", str(path), *words])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_images_without_masks_do_not_teach_a_segmenter(path: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", [row(0, "benign"), row(1, "normal")])
    result = CliRunner().invoke(app, ["downstream", str(path), "segmentation", "--images", str(folder)])
    assert result.exit_code == 2
    assert "folder set has 0.png without the mask that it was drawn from, needed one for every image" in result.stderr


def other_run(path: Path, tmp_path: Path, setting: str) -> list[str]:
    """Prepare another run, with the same stages, and return what sets it."""
    settings = [f"run={tmp_path / 'other'}", setting]
    config = load_config(path, settings)
    prepare_databases(config)
    shutil.copytree(tmp_path / "run" / "stages", config.run / "stages")
    return settings


def test_prompts_that_do_not_tell_labels_apart_are_refused(path: Path, tmp_path: Path) -> None:
    settings = other_run(path, tmp_path, "databases.breast.prompts=[an ultrasound image]")
    result = CliRunner().invoke(app, ["downstream", str(path), "classification", *settings])
    assert result.exit_code == 2
    assert "breast has the prompt 'an ultrasound image' for the labels benign, malignant, normal" in result.stderr


def test_a_run_without_test_patients_is_refused(path: Path, tmp_path: Path) -> None:
    settings = other_run(path, tmp_path, "prepare.test_fraction=0")
    for experiment, what in (("classification", "0 patients of 0 known labels"), ("segmentation", "0 test patients")):
        result = CliRunner().invoke(app, ["downstream", str(path), experiment, *settings])
        assert result.exit_code == 2
        assert "no database fits this experiment: breast: " in result.stderr
        assert what in result.stderr


@pytest.mark.parametrize(
    ("experiment", "lines"),
    [
        ("classification", ("real", "real + augmentation", "real + generated", "real + both")),
        (
            "generated-only",
            ("generated alone learnt images", "learnt images   test split", "generated alone test split"),
        ),
        ("segmentation", ("real", "real + augmentation", "real + generated", "real + both")),
    ],
)
def test_the_command(path: Path, drawn: list[dict[str, Any]], experiment: str, lines: tuple[str, ...]) -> None:
    options = ["--num-images", "12", "--seeds", "2", "--steps", "2"]
    result = CliRunner().invoke(app, ["downstream", str(path), experiment, "preview.sampling.steps=1", *options])
    assert result.exit_code == 0, result.stderr
    table = result.stdout[result.stdout.index("Do generated images") :].splitlines()
    assert max(len(line) for line in table if not line.startswith("figures")) <= 80
    for line in lines:
        assert sum(bool(re.match(rf"{re.escape(line)} +\d", found)) for found in table) == 1
    assert sum(found.startswith("Good: ") for found in table) == 1
    (file,) = (path.parent / "run" / "evaluation").glob(f"*/downstream-{experiment}.json")
    written = json.loads(file.read_text())
    assert written["network"]["steps"] == 2
    assert written["num_seeds"] == 2
    assert table[-1] == f"figures  {file}"


@pytest.mark.parametrize("tests", [(LEARNT, "test split", "test split"), 3 * ("test split",)])
def test_the_widest_table_fits_into_80_letters(tests: tuple[str, ...]) -> None:
    widest = Interval(value=0.998, low=0.954, high=1.0)
    gain = Difference(
        gain=Interval(value=-0.1, low=-0.213, high=0.133), p_patients=0.242, p_seeds=1, num_seeds_better=10
    )
    facts = {"num_tested": 99, "num_patients": 50, "reached": widest, "of_seeds": (0.9,), "is_augmented": True}
    names = (GENERATED_ALONE, LEARNT, GENERATED_ALONE) if tests[0] == LEARNT else [arm.name for arm in ARMS[:3]]
    arms = tuple(
        ArmResult(
            name=name,
            num_real=0 if name == GENERATED_ALONE else 4000,
            num_generated=0 if name == LEARNT else 4000,
            tested_on=tested_on,
            baseline=names[1] if number == 2 else None,
            against=gain if number == 2 else None,
            **facts,
        )
        for number, (name, tested_on) in enumerate(zip(names, tests, strict=True))
    )
    found = Downstream(
        experiment="generated-only" if tests[0] == LEARNT else "classification",
        measure="AUC",
        images_of="stage one",
        resolution=64,
        num_seeds=12,
        network={"steps": 300},
        databases=(DatabaseResult(name="breast", classes=("benign", "malignant"), arms=arms),),
        left_out={},
    )
    console = Console(width=80, file=StringIO())
    print_downstream(found, console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for figure in ("(95.4 to 100)", "(-21.3 to +13.3)", "p 0.242, 10/12 up", "4000 drawn"):
        assert figure in text


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.1234, "+12.3"), (-0.1, "-10.0"), (0.0, "+0.0"), (-6e-17, "+0.0"), (-0.00036, "-0.04"), (1.2e-6, "+0.0001")],
)
def test_on_which_side_of_0_a_gain_lies_is_seen(share: float, shown: str) -> None:
    assert signed_percent(share) == shown


def test_figures_of_the_table_are_those_of_the_file(config: RunConfig, drawn: list[dict[str, Any]]) -> None:
    found = run_experiment(config, "classification", stage_name="one", num_images=4, num_seeds=2, steps=2, say=quiet)
    console = Console(width=80, file=StringIO())
    print_downstream(found, console)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    for arm in found.databases[0].arms:
        shares = arm.reached.model_dump().values()
        value, low, high = (f"{100 * share:.1f}".replace("100.0", "100") for share in shares)
        assert value in text
        assert f"({low} to {high})" in text
        if arm.against:
            assert f"{100 * arm.against.gain.value:+z.1f}" in text
            assert f"p {arm.against.p_patients:.3f}, {arm.against.num_seeds_better}/2 up" in text
    assert "few is left out" in text
