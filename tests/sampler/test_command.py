"""The command as a person meets it, inside a bundle and as `sonoshard sample`."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data.encode import EncodeConfig
from data.hints import CLASS_COLOURS
from evaluation import generated_images
from launch.cli import app
from sampler import draw as drawing
from sampler import image_set
from sampler.command import main
from sampler.draw import Drawer
from sampler.noise_levels import karras_levels
from sampler.schedule import Schedule
from sampler.solvers import Solver, make_solver

PROMPT = "simulated breast ultrasound, benign"
FAST = ("--steps", "2", "--guidance", "1")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code, _, error = run(capsys, *arguments)
    assert code == 2, error
    assert error.startswith("sonoshard sample: ")
    assert error.count("\n") == 1
    return error


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "labels.csv").open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_a_labelled_set_of_every_class(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    code, told, error = run(capsys, bundle, "--per-class", "2", "--seed", "9", *FAST, "--out", out)
    assert (code, error) == (0, ""), "no progress bar where nobody looks"
    assert "6 images, labels.csv and contact_sheet.png" in told
    found = rows(out)
    assert [row["label"] for row in found] == ["benign"] * 2 + ["malignant"] * 2 + ["normal"] * 2
    assert [int(row["seed"]) for row in found] == list(range(9, 15))
    manifest = json.loads((bundle / "manifest.json").read_text())
    for row in found:
        with Image.open(out / row["file"]) as picture:
            assert picture.size == (128, 128)
            assert picture.info["prompt"] == row["prompt"]
            assert picture.info["seed"] == row["seed"]
            assert picture.info["bundle"] == manifest["name"]
            assert picture.info["generated"] == "yes. Generated images. Not for diagnosis."
            assert picture.info["simulated"].startswith("yes")
            assert picture.info["steps"] == "2"
    with Image.open(out / "contact_sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).max() > 100
    assert not list(out.rglob("*.partial"))


def test_an_image_says_how_it_was_drawn(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--negative", "fat", "--sampler", "unipc", "--steps", "3", "--guidance", "2.5", "--guidance-rescale", "0.4")
    assert run(capsys, bundle, "--prompt", PROMPT, *how, "--out", tmp_path / "set")[0] == 0
    with Image.open(tmp_path / "set" / "images" / "000001.png") as picture:
        told = picture.info
    expected = {"negative_prompt": "fat", "sampler": "unipc", "guidance": "2.5", "guidance_rescale": "0.4"}
    assert expected.items() <= told.items()


def test_solver_and_steps_are_the_bundles_where_nobody_says(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[float]]] = []

    def solver(schedule: Schedule, sampler: str, steps: int) -> Solver:
        made = make_solver(schedule, sampler, steps)
        asked.append((type(made).__name__, karras_levels(schedule, steps)[0].tolist()))
        assert list(made.timesteps) == [int(timestep) for timestep in asked[-1][1]], "Karras' noise levels"
        return made

    monkeypatch.setattr(drawing, "make_solver", solver)
    assert run(capsys, bundle, "--prompt", PROMPT, "--out", tmp_path / "set")[0] == 0
    assert [(name, len(levels)) for name, levels in asked] == [("DpmSolver", 25)]


def test_a_set_is_what_the_downstream_experiments_read(
    control_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image_set.COLUMNS == generated_images.COLUMNS, "written by one, read by the other"
    assert (image_set.LABELS, image_set.SHEET) == (generated_images.LABELS_FILE, generated_images.SHEET_FILE)
    numbers = np.zeros((128, 128), np.uint8)
    numbers[20:60, 30:90] = 1
    Image.fromarray(numbers).save(tmp_path / "mask.png")
    arguments = ("--per-class", "1", "--mask", tmp_path / "mask.png", *FAST, "--out", tmp_path / "set")
    assert run(capsys, control_bundle, *arguments)[0] == 0
    read = generated_images.read_generated(tmp_path / "set", EncodeConfig(), 128)
    assert read.images_NHW.shape == (3, 128, 128)
    assert read.labels == ("benign", "malignant", "normal")
    assert read.databases == ("sim",) * 3
    assert all(mask is not None and np.array_equal(mask, numbers) for mask in read.masks)


def test_a_prompt_of_several_classes_has_no_label(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["prompts"].append({"prompt": PROMPT, "label": "cyst", "database": "other"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    other = "simulated breast ultrasound, normal"
    assert run(capsys, folder, "--prompt", PROMPT, "--prompt", other, *FAST, "--out", tmp_path / "set")[0] == 0
    assert [(row["label"], row["database"]) for row in rows(tmp_path / "set")] == [("", ""), ("normal", "sim")]


def test_a_zip_draws_what_its_folder_draws(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle)
    for source, name in ((bundle, "folder"), (archive, "zip")):
        assert run(capsys, source, "--prompt", PROMPT, *FAST, "--out", tmp_path / name)[0] == 0
    images = [(tmp_path / name / "images" / "000001.png").read_bytes() for name in ("folder", "zip")]
    assert images[0] == images[1]


@pytest.mark.parametrize(
    ("first", "code"),
    [("pass", 0), ("open('/etc/hosts')", 8), ("import socket; socket.socket().connect(('127.0.0.1', 9))", 7)],
)
def test_no_network_and_nothing_outside_the_bundle(control_bundle: Path, tmp_path: Path, first: str, code: int) -> None:
    """A drawing under an audit hook, which sees every socket and every file that Python opens, and which works."""
    mask = tmp_path / "mask.png"
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(mask)
    out = tmp_path / "set"
    script = f"""
import os, sys
allowed = [{str(control_bundle)!r}, {str(tmp_path)!r}, {str(Path(__file__).parents[2] / "sampler")!r}]
allowed += [sys.prefix, sys.base_prefix, "/usr/lib", "/lib", "/proc", "/sys", "/dev/null", "/etc/os-release"]
def hook(event, arguments):
    if event.startswith("socket."):
        os.write(2, f"network: {{event}}".encode()); os._exit(7)
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not any(path == one or path.startswith(one + os.sep) for one in allowed):
            os.write(2, f"outside: {{path}}".encode()); os._exit(8)
sys.addaudithook(hook)
{first}
from sampler.command import main
sys.exit(main({[str(control_bundle), "--prompt", PROMPT, "--mask", str(mask), *FAST, "--out", str(out)]!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == code, done.stderr
    assert (out / "images" / "000001.png").is_file() == (code == 0)


def test_masks_in_turn_lie_beside_their_images(
    control_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    numbers = np.zeros((2, 128, 128), np.uint8)
    numbers[0, 20:60, 30:90] = numbers[1, 60:100, 30:90] = 1
    for name, mask in zip("ab", numbers, strict=True):
        Image.fromarray(np.array(CLASS_COLOURS, np.uint8)[mask]).save(folder / f"{name}.png")
    out = tmp_path / "set"
    code, _, error = run(capsys, control_bundle, "--prompt", PROMPT, "-n", "3", "--mask", folder, *FAST, "--out", out)
    assert code == 0, error
    found = rows(out)
    assert [row["mask"] for row in found] == ["masks/000001.png", "masks/000002.png", "masks/000003.png"]
    for row, expected in zip(found, numbers[[0, 1, 0]], strict=True):
        with Image.open(out / row["mask"]) as written, Image.open(out / row["file"]) as image:
            assert np.array_equal(np.asarray(written), expected), "pixels are class numbers"
            assert written.convert("RGB").getpixel((40, 70)) == CLASS_COLOURS[expected[70, 40]]
            assert image.info["mask"] == row["mask"]
    assert [row["label"] for row in found] == ["benign"] * 3, "the label of the prompt of training"


def test_every_class_is_drawn_from_its_own_masks(
    control_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "masks", tmp_path / "set"
    sides = {"sim/benign": 10, "malignant": 20}
    for name, side in sides.items():
        (folder / name).mkdir(parents=True)
        numbers = np.zeros((128, 128), np.uint8)
        numbers[:side, :side] = 1
        Image.fromarray(numbers).save(folder / name / "1.png")
    line = refusal(capsys, control_bundle, "--per-class", "1", "--mask", folder, *FAST, "--out", out)
    assert "no mask fits sim / normal: put masks into sim/normal/ within the folder of --mask" in line
    (folder / "sim" / "normal").mkdir()
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(folder / "sim" / "normal" / "1.png")
    assert run(capsys, control_bundle, "--per-class", "1", "--mask", folder, *FAST, "--out", out)[0] == 0
    for row, side in zip(rows(out), (10, 20, 0), strict=True):
        with Image.open(out / row["mask"]) as written:
            assert int((np.asarray(written) == 1).sum()) == side**2, row["label"]


def test_an_interrupted_set_goes_on_and_ends_the_same(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (bundle, "--prompt", PROMPT, "-n", "3", *FAST, "--out")
    assert run(capsys, *arguments, tmp_path / "whole")[0] == 0
    draw = Drawer.draw

    def interrupted(self: Drawer, wishes: list[drawing.Wish], *more: object) -> np.ndarray:
        if wishes[0].seed == 1:
            raise KeyboardInterrupt
        return draw(self, wishes, *more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Drawer, "draw", interrupted)
        code, _, error = run(capsys, *arguments, tmp_path / "set")
    assert code == 130
    assert "run the same command again to go on" in error
    assert len(rows(tmp_path / "set")) == 1
    code, told, _ = run(capsys, *arguments, tmp_path / "set")
    assert code == 0
    assert "has 1 of 3 images; drawing the others" in told
    for path in sorted((tmp_path / "whole").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "set" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_nothing_is_overwritten(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert run(capsys, bundle, "--prompt", PROMPT, *FAST, "--out", out)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    line = refusal(capsys, bundle, "--prompt", PROMPT, *FAST, "--seed", "5", "--out", out)
    assert "holds images of other settings (seed: 0 there, 5 now); choose another --out" in line
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("the only copy")
    line = refusal(capsys, bundle, "--prompt", PROMPT, *FAST, "--out", tmp_path / "other")
    assert "is not empty, and nothing in it is overwritten" in line
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "nothing to draw: give --prompt, --per-class or --serve; it was trained on 'simulated breast"),
        (("--prompt", "x", "-n", "0"), "-n is 0; needed is 1 to 1000000"),
        (("--prompt", "x", "--guidance", "0.5"), "--guidance is 0.5; needed is 1 to 1000"),
        (("--prompt", "x", "--guidance", "nan"), "--guidance is nan; needed is 1 to 1000"),
        (("--prompt", "x", "--seed", "-1"), "the seed is -1; needed is 0 to"),
        (("--prompt", "x", "--per-class", "2"), "leave out --prompt and -n"),
        (("--prompt", "x", "--mask", "m.png"), "the bundle has no ControlNet, so a mask cannot steer it"),
        (("--prompt", "x", "--mask-class", "lesion"), "no --mask was given"),
    ],
)
def test_what_cannot_be_drawn(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], line: str
) -> None:
    assert line in refusal(capsys, bundle, *arguments, "--out", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_prompt_that_is_too_long_is_told(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, bundle, "--prompt", "1 " * 30, *FAST, "--out", tmp_path / "set")
    assert code == 0
    assert "note: 8 tokens at the end of" in error


def test_about_and_selftest(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = run(capsys, bundle, "--about")
    assert code == 0
    assert PROMPT in told
    assert "Apache-2.0" in told
    code, told, _ = run(capsys, bundle, "--selftest")
    assert code == 0
    assert "image levels" in told
    assert told.count("  ok") == 5


def test_selftest_fails_with_1_over_a_limit(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parity"]["limits"]["latents"] = 1e-12
    path.write_text(json.dumps(manifest))
    code, told, _ = run(capsys, folder, "--selftest")
    assert code == 1
    assert told.count("TOO LARGE") == 1


def test_the_front_door_hands_everything_on(bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["sample", "--help"])
    assert result.exit_code == 0
    assert "--per-class" in result.stdout
    result = CliRunner().invoke(app, ["sample", str(bundle), "--prompt", "a b", *FAST, "--out", str(tmp_path / "set")])
    assert result.exit_code == 0, result.stderr
    assert rows(tmp_path / "set")[0]["prompt"] == "a b"
    result = CliRunner().invoke(app, ["sample", str(tmp_path / "none"), "--about"])
    assert result.exit_code == 2
    assert result.stderr.startswith("sonoshard sample: there is no ")


def test_nothing_of_torch_or_of_ours_is_imported(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from sampler.command import main; "
        f"code = main([{str(bundle)!r}, '--prompt', 'a', '--steps', '1', '--out', {str(tmp_path / 'set')!r}]); "
        "assert code == 0; ours = {'torch', 'diffusers', 'transformers', 'models', 'data', 'launch', 'typer'}; "
        "assert not ours & {name.split('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
