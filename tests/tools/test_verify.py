"""`sonoshard verify` looks through whole runs, names what is damaged last, and says so by its exit code."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from data.encode import EncodeConfig, encode
from distributed.checkpoint import FORMAT_VERSION, publish, slices_name
from launch.cli import app
from tests.data.fake_encoder import FakeEncoder
from tests.data.rows_fixture import write_rows


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder: shards, two checkpoints of a stage, its model."""
    config = EncodeConfig(samples_per_shard=6)
    encode(write_rows(tmp_path, 20), FakeEncoder(), config, 64, tmp_path / "run" / "shards" / "64")
    stage = tmp_path / "run" / "stages" / "busi"
    for step in (5, 10):
        folder = stage / "checkpoints" / f"step-{step:08d}"
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir(parents=True)
        slices = partial / slices_name(0, 1)
        save_file({"000.master": np.arange(1000, dtype=np.float32) + step}, slices)
        files = {slices.name: hashlib.sha256(slices.read_bytes()).hexdigest()}
        manifest = {"format_version": FORMAT_VERSION, "files": files, "position": {"step": step}}
        publish(partial, folder, manifest)
    (stage / "model" / "unet").mkdir(parents=True)
    (stage / "model" / "unet" / "config.json").write_text("{}")
    save_file({"weight": np.zeros(100, dtype=np.float32)}, stage / "model" / "unet" / "model.safetensors")
    return tmp_path / "run"


def verify(*paths: Path) -> tuple[int, list[str], str]:
    """Return exit code, lines of stdout, and stderr."""
    result = CliRunner().invoke(app, ["verify", *map(str, paths)])
    return result.exit_code, result.stdout.splitlines(), result.stderr


def test_a_whole_run_is_right(run: Path) -> None:
    code, lines, _ = verify(run)
    assert code == 0
    # Fingerprint, text, four shards; two checkpoints and LATEST; one file of weights.
    assert len(lines) == 11
    assert lines[-1] == "all 10 are right"
    assert all(line.startswith(f"ok      {run}/") for line in lines[:-1])
    assert verify(run / "stages" / "busi" / "checkpoints" / "step-00000005")[1][-1] == "all 1 are right"
    assert verify(run, run / "shards")[1] == lines, "nothing is checked twice"


def test_another_format_is_told_once(run: Path) -> None:
    folder = run / "stages" / "busi" / "checkpoints" / "step-00000005"
    (folder / "manifest.json").write_text('{"format_version": 2}')
    code, lines, _ = verify(folder)
    assert code == 1
    (line,) = [line for line in lines if "is of format 2, this version reads 3: go on with what wrote it" in line]
    assert line.count(str(folder)) == 1


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


def test_what_is_damaged_is_named_last(run: Path) -> None:
    stage = run / "stages" / "busi"
    tar, slices = (
        run / "shards" / "64" / "sim" / "train-000001.tar",
        stage / "checkpoints" / "step-00000010" / "slices-00000-of-00001.safetensors",
    )
    flip(tar)
    flip(slices)
    weights = stage / "model" / "unet" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    code, lines, _ = verify(run)
    assert code == 1
    assert [line for line in lines[:10] if not line.startswith("ok")] == [
        f"DAMAGED {tar}",
        f"DAMAGED {slices.parent}",
        f"DAMAGED {weights}",
    ]
    assert lines[10] == "3 of 10 are damaged:"
    assert lines[11].startswith(f"  {tar} is damaged ")
    assert lines[12] == f"  {slices.parent}: {slices.name} does not match its hash"
    assert lines[13].startswith(f"  {weights} cannot be opened (")


@pytest.mark.parametrize("name", ["manifest.json", "slices-00000-of-00001.safetensors", ""])
def test_a_checkpoint_that_lacks_something(run: Path, name: str) -> None:
    folder = run / "stages" / "busi" / "checkpoints" / "step-00000010"
    if name:
        (folder / name).unlink()
    else:
        shutil.rmtree(folder)
    code, lines, _ = verify(run / "stages")
    assert code == 1
    assert (name or "LATEST names step-00000010, which is not there") in lines[-1]


def test_nothing_to_verify(tmp_path: Path) -> None:
    code, _, error = verify(tmp_path)
    assert code == 2
    assert error == (
        f"sonoshard: {tmp_path} holds nothing to verify: give a folder of shards, a checkpoint, a stage, a model, a"
        " bundle or a run\n"
    )
    assert verify(tmp_path / "not there")[0] == 2
