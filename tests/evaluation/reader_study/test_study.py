"""A reader study made from a run: which images it shows, of which kind, and the command."""

import base64
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from data.manifest import Manifest, ManifestRow
from evaluation import intervals
from evaluation.reader_study.choice import choose_rows
from evaluation.reader_study.generated import stage_to_show
from evaluation.reader_study.key import KeyRow, read_key
from evaluation.reader_study.page import COLUMNS
from launch.cli import app
from launch.config import RunConfig, load_config
from launch.prepare import prepare_databases
from models.saving import save_pipeline
from models.stable_diffusion import load_unet
from tests.tiny_random_model import write_tiny_random_model

CONFIG = """\
run: {folder}/run
model: {{base: {folder}/model}}
databases:
  breast: {{kind: simulated, preset: breast, size: 64, count: 20}}
  cardiac: {{kind: simulated, preset: cardiac, size: 64, count: 20}}
  unseen: {{kind: simulated, preset: fetal, size: 64, count: 8}}
prepare: {{validation_fraction: 0.1, test_fraction: 0.3}}
preview: {{sampling: {{steps: 1, guidance: 1}}}}
stages:
  - {{name: one, databases: [breast], steps: 20}}
  - {{name: masks, kind: controlnet, databases: [unseen], steps: 20}}
  - {{name: two, databases: [cardiac], steps: 10, start: one}}
  - {{name: unfinished, databases: [unseen], steps: 10}}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a prepared run, with the models of two diffusion stages."""
    folder = tmp_path_factory.mktemp("reader_study")
    write_tiny_random_model(folder / "model")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    config = load_config(path)
    prepare_databases(config)
    weights = {key: value.detach() for key, value in load_unet(config.model, torch.float32).state_dict().items()}
    for stage in config.stages:
        if stage.name in ("one", "two"):
            save_pipeline(config.model, weights, config.stage_model(stage), {"steps": stage.steps})
    return path


def evaluate(path: Path, *arguments: object) -> str:
    """What the command prints when all is well, and elsewhere than on the terminal's lines."""
    result = CliRunner().invoke(app, ["evaluate", str(path), *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refusal(path: Path, *arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", str(path), *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def row(database: str, label: str, patient: int, image: int) -> ManifestRow:
    return ManifestRow(
        id=f"{database}/{label}/{patient}/{image}",
        image=Path("gone.png"),
        prompts=("",),
        label=label,
        database=database,
        sha256="",
        masks_sha256=(),
        width=1,
        height=1,
        cluster=f"{database}/{patient}",
    )


def test_databases_labels_and_patients_take_turns() -> None:
    rows = [
        *(row("a", "benign", patient, image) for patient in range(10) for image in range(5)),
        *(row("a", "malignant", patient, 0) for patient in range(20, 23)),
        *(row("b", "normal", patient, 0) for patient in range(4)),
    ]
    chosen = choose_rows(rows, 8, np.random.default_rng(0))
    assert Counter((of.database, of.label) for of in chosen) == {
        ("a", "benign"): 2,
        ("a", "malignant"): 2,
        ("b", "normal"): 4,
    }
    assert len({of.cluster for of in chosen}) == 8
    more = choose_rows(rows, 20, np.random.default_rng(0))
    assert Counter((of.database, of.label) for of in more) == {
        ("a", "benign"): 13,
        ("a", "malignant"): 3,
        ("b", "normal"): 4,
    }
    assert Counter(of.cluster for of in more if of.label == "benign").most_common(1)[0][1] == 2
    assert len(choose_rows(rows, 1000, np.random.default_rng(0))) == len(rows) == len({of.id for of in rows})
    assert choose_rows([], 3, np.random.default_rng(0)) == []
    assert [of.id for of in choose_rows(rows, 8, np.random.default_rng(1))] != [of.id for of in chosen]


def test_a_stage_shows_what_its_model_has_seen(path: Path) -> None:
    config = load_config(path)
    assert stage_to_show(config, None).name == "two"
    assert config.databases_seen(stage_to_show(config, None)) == ["breast", "cardiac"]
    assert config.databases_seen(stage_to_show(config, "one")) == ["breast"]


def study(config: RunConfig) -> tuple[list[KeyRow], dict[str, Image.Image]]:
    """The key of a run's study, and the images of its page by their names."""
    folder = config.run / "reader_study"
    found = re.findall(
        r'"id": ?"([0-9a-f]{8})", "source": ?"data:image/png;base64,([^"]*)"',
        (folder / "study.html").read_text(encoding="utf-8"),
    )
    return read_key(folder / "key.csv"), {
        name: Image.open(io.BytesIO(base64.b64decode(content))) for name, content in found
    }


def separate_run(path: Path, tmp_path: Path) -> list[str]:
    """Settings of a run that shares what was prepared and trained, so that tests leave each other's study alone."""
    run = load_config(path).run
    for name in ("manifest.parquet", "stages"):
        (tmp_path / name).symlink_to(run / name)
    return [f"run={tmp_path}"]


def test_a_study_of_a_stage_from_the_command_to_the_scores(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 20)
    settings = separate_run(path, tmp_path)
    config = load_config(path, settings)
    output = evaluate(path, *settings, "--reader-study", "--num-images", 6)
    assert "two: 6 images of breast, cardiac\n" in output
    assert "for you alone, the key: " in output
    assert "<b>Simulated.</b>" in (config.run / "reader_study" / "study.html").read_text(encoding="utf-8")
    key, images = study(config)
    assert Counter(of.kind for of in key) == {"real": 6, "generated": 6}
    kinds = [Counter((of.database, of.label) for of in key if of.kind == kind) for kind in ("real", "generated")]
    assert kinds[0] == kinds[1]
    assert Counter(of.database for of in key) == {"breast": 6, "cardiac": 6}
    assert images.keys() == {of.image for of in key}
    assert all((image.mode, image.size, image.info) == ("L", (64, 64), {}) for image in images.values())
    assert len({image.tobytes() for image in images.values()}) == 12
    rows = {of.id: of for of in Manifest.read(config.manifest_path).rows}
    for of in key:
        if of.kind == "real":
            assert rows[of.source].split == "test"
            original = np.asarray(Image.open(rows[of.source].image).convert("L"))
            np.testing.assert_array_equal(np.asarray(images[of.image]), original)
        else:
            assert re.fullmatch(r"stage two, seed \d+", of.source)

    evaluate(path, *settings, "--reader-study", "--num-images", 6)
    assert study(config)[0] == key, "the same settings made another study"
    assert "is the key of study" in refusal(path, *settings, "seed=1", "--reader-study", "--num-images", 6)

    lines = [",".join(COLUMNS)]
    for order, of in enumerate(key, start=1):
        confidence = 6 if of.kind == "real" else 1
        lines.append(f"{of.study},A,,{order},{of.image},{of.kind},{confidence},1.0,")
    (tmp_path / "A.csv").write_text("\r\n".join(lines), encoding="utf-8")
    (tmp_path / "B.csv").write_text("\r\n".join(lines).replace(",A,", ",B,"), encoding="utf-8")
    output = evaluate(path, *settings, "--score", tmp_path / "A.csv", "--score", tmp_path / "B.csv")
    assert "6 real and 6 generated images" in output
    assert "A and B" in output
    assert (config.run / "reader_study" / "scores.json").is_file()
    assert "are both of reader A" in refusal(
        path, *settings, "--score", tmp_path / "A.csv", "--score", tmp_path / "A.csv"
    )


def test_real_images_of_a_folder_s_databases_alone_are_shown(path: Path, tmp_path: Path) -> None:
    settings = separate_run(path, tmp_path)
    (folder := tmp_path / "hearts").mkdir()
    for place in range(5):
        Image.fromarray(np.full((64, 64), place, np.uint8)).save(folder / f"{place}.png")
    rows = "".join(f"{place}.png,cardiac\n" for place in range(5))
    (folder / "labels.csv").write_text(f"file,database\n{rows}", encoding="utf-8")
    with pytest.warns(UserWarning, match="5 real and 5 generated images instead of 40 each: there are"):
        evaluate(path, *settings, "--reader-study", "--images", folder)
    key, _ = study(load_config(path, settings))
    assert {of.database for of in key} == {"cardiac"}


def test_images_made_elsewhere_are_made_alike(path: Path, tmp_path: Path) -> None:
    settings = separate_run(path, tmp_path)
    folder = tmp_path / "images" / "breast"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for place in range(5):
        colours = Image.fromarray(random.integers(0, 256, (96, 128, 3), np.uint8))
        colours.save(folder / f"{place}.png", pnginfo=None, dpi=(72, 72))
    with pytest.warns(UserWarning, match="5 real and 5 generated images instead of 40 each: there are"):
        evaluate(path, *settings, "--reader-study", "--images", folder.parent)
    key, images = study(load_config(path, settings))
    assert Counter(of.kind for of in key) == {"real": 5, "generated": 5}
    assert all((image.mode, image.size, image.info) == ("L", (64, 64), {}) for image in images.values())
    assert {of.source for of in key if of.kind == "generated"} == {str(folder / f"{place}.png") for place in range(5)}


@pytest.mark.parametrize("has_table", [True, False])
def test_masks_and_contact_sheet_of_a_sampled_folder_are_not_shown(path: Path, tmp_path: Path, has_table: bool) -> None:
    settings = separate_run(path, tmp_path)
    folder = tmp_path / "sampled"
    (folder / "masks").mkdir(parents=True)
    random = np.random.default_rng(0)
    lines = ["file,label,database,prompt,seed,mask"]
    for place in range(3):
        name = f"{place:06}.png"
        Image.fromarray(random.integers(1, 256, (64, 64), np.uint8)).save(folder / name)
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "masks" / name)
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / f"{place:06}_mask.png")
        lines.append(f"{name},benign,breast,a prompt,{place},masks/{name}")
    Image.fromarray(np.zeros((200, 300), np.uint8)).save(folder / "contact_sheet.png")
    if has_table:
        (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="3 real and 3 generated images instead of 40 each: there are"):
        evaluate(path, *settings, "--reader-study", "--images", folder)
    key, images = study(load_config(path, settings))
    generated = [of for of in key if of.kind == "generated"]
    assert {of.source for of in generated} == {str(folder / f"{place:06}.png") for place in range(3)}
    assert {(of.database, of.label) for of in generated} == {("breast", "benign") if has_table else ("", "")}
    assert all(np.asarray(images[of.image]).any() for of in generated), "a mask of background alone is black"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reader-study", "--stage", "unfinished"], "stage unfinished has no model yet: run `sonoshard train`"),
        (["--reader-study", "--stage", "masks"], "trained a ControlNet, which draws from masks: give its images by"),
        (["--reader-study", "--stage", "three"], "there is no stage three; there are one, masks, two, unfinished"),
        (["--reader-study", "--images", "{}/absent"], "there is no folder"),
        (["--reader-study", "--images", "{}", "--stage", "one"], "give one of them"),
        (["--reader-study", "--score", "a.csv"], "--reader-study and --score do different things: give one of them"),
        (["--score", "a.csv", "--num-images", "8"], "--score takes all images of the study: leave out --num-images"),
        (["--score", "a.csv", "--stage", "one"], "--score takes neither --stage nor --images: leave them out"),
        (["--every-stage", "--images", "{}"], "--every-stage takes neither --stage nor --images: leave them out"),
        (["--score", "a.csv"], "there is no key"),
        (["run={}/none", "--reader-study"], "no manifest"),
    ],
)
def test_wrong_arguments(path: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refusal(path, *[argument.format(tmp_path) for argument in arguments])


def test_too_few_images(path: Path, tmp_path: Path) -> None:
    settings = separate_run(path, tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    message = refusal(path, *settings, "--reader-study", "--images", tmp_path / "images")
    assert "images has 1 images, needed two or more" in message
    (tmp_path / "images" / "again.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="2 real and 2 generated images instead of 40 each"):
        message = refusal(path, *settings, "--reader-study", "--images", tmp_path / "images")
    assert "again.png cannot be read as an image" in message
    assert not (tmp_path / "reader_study").exists()
