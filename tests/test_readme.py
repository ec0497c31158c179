"""The commands of README.md, in its order, on a small BUSI and a small model: what a person types works."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.controlled_model import write_controlled_model
from data.hints import hint_colours
from launch.cli import app
from tests.data.busi_fixture import write_busi
from tests.tiny_random_model import write_tiny_random_model
from tests.tools.export.conftest import PALETTE, TRAINING

ROOT = Path(__file__).parent.parent
SMALL = """\
extends: {root}/configs/busi.yaml
model: {{base: {folder}/model, resolution: 64}}
prepare: {{validation_fraction: 0.2, test_fraction: 0.2}}
batch: {{global_size: 4, micro_size: 2}}
validation: {{num_samples: 2}}
preview: {{every_steps: null}}
stages:
  - {{name: busi, databases: [busi], steps: 2}}
  - {{name: again, databases: [busi], steps: 2}}
"""
# What is run by other tests, since it takes minutes or a cluster: the beginning of a command, and where.
ELSEWHERE = {
    "make install": "../.ci/run",
    "make demo": "tools/test_demo.py",
    "make test": "../.ci/run",
    "make lint": "../.ci/run",
    "make drill": "launch/test_drill.py",
    "make bench": "benchmarks/test_all.py",
    "python -m tests.curriculum_drill": "launch/test_killed_curriculum.py",
    "python sample.py --serve": "sampler/test_serve.py",
    "sbatch ": "slurm/test_scripts.py",
    "sonoshard downstream ": "evaluation/downstream/test_experiment.py",
    "sonoshard evaluate ": "evaluation/test_report.py",
    "sonoshard submit ": "slurm/test_submit.py",
    "tensorboard ": "launch/test_train.py",
}
# What stands for something of the reader's own, or takes long: words of the README, and those that are run.
INSTEAD = {
    "A B C": "runs/busi/stages/busi/model runs/busi/stages/again/model model",
    " --watch": "",
    "--search configs/curriculum.yaml": "--search configs/busi.yaml --budget 2",
    "--per-class 200": "--per-class 1",
    "sonoshard sample BUNDLE": "sonoshard sample bundle --about",
}


def commands(text: str) -> list[str]:
    """Return the commands of a page in their order, from blocks of code and from within lines, without comments."""
    found = re.findall(
        r"^    ((?:sonoshard|sbatch|make|python|tensorboard) .+)$|`((?:sonoshard|make|python) [^`]+)`", text, re.M
    )
    lines = [shlex.join(shlex.split(block or inline, comments=True)) for block, inline in found]
    # Not those that are only spoken of: `sonoshard memory`.
    return [line for line in lines if not re.search(r"CONFIG|KIND|NAME|^sonoshard \w+$", line)]


README = commands((ROOT / "README.md").read_text(encoding="utf-8"))


def is_elsewhere(line: str) -> bool:
    return any(line.startswith(beginning) for beginning in ELSEWHERE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a person has: a checkout's configs, BUSI in $DATA, a base model, masks to draw from."""
    made = tmp_path_factory.mktemp("readme")
    write_tiny_random_model(made / "model")
    write_busi(made, num_per_label=8)
    (made / "configs").mkdir()
    (made / "configs" / "busi.yaml").write_text(SMALL.format(root=ROOT, folder=made), encoding="utf-8")
    (made / "masks").mkdir()
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(made / "masks" / "1.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setenv("DATA", str(made))
        yield made


def run(line: str, bundle: Path) -> None:
    """Run a command here, or one of a bundle's own sampler in its folder."""
    program, *words = shlex.split(line)
    if words[0] == "train":  # a single rank is the process that was called, and ends it
        done = subprocess.run([sys.executable, "-m", "launch.cli", *words], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return
    if program == "python":
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([sys.executable, *words], cwd=bundle, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    result = CliRunner().invoke(app, words)
    # doctor ends with 1 where something must be mended: the machine is whatever it is.
    assert result.exit_code in ({0, 1} if words[0] == "doctor" else {0}), f"{line}\n{result.output}\n{result.stderr}"


@pytest.mark.slow
def test_every_command_does_what_the_readme_says(folder: Path) -> None:
    record = {"hint_colours": hint_colours(PALETTE), "training": vars(TRAINING)}
    controlled = write_controlled_model("model", folder / "controlled", record)
    bundle = folder / "bundle"
    run(f"sonoshard export {controlled} {bundle} --to onnx", bundle)
    outs = 0
    for line in (line for line in README if not is_elsewhere(line)):
        for word, other in INSTEAD.items():
            line = line.replace(word, other)
        if re.search(r"\bOUT\b|FILE", line):
            outs += 1
            line = re.sub(r"\bOUT\b|FILE", f"OUT{outs}", line)
        run(line.replace("masks/", str(folder / "masks")), bundle)
    assert (folder / "runs" / "busi" / "stages" / "busi" / "model" / "model_index.json").is_file()
    assert len(list((bundle / "training_set" / "images").glob("*.png"))) == len(TRAINING.prompts)


def test_what_is_not_run_here_is_run_elsewhere() -> None:
    assert len(README) > 30
    for beginning, place in ELSEWHERE.items():
        assert any(line.startswith(beginning) for line in README), beginning
        assert (ROOT / "tests" / place).is_file(), place
