"""The commands as a person meets them: bad input gives exit code 2 and one line; a stop gives 75 and loses nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distributed.checkpoint import newest_position
from launch.cli import app
from launch.errors import ConfigError
from launch.lock import locked
from launch.step_log import read_steps
from tests.launch.rank_pids import children, rank_pids
from tests.launch.started import started
from tests.tiny_random_model import write_tiny_random_model


def run(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def refusal(*arguments: str) -> str:
    """Return the one line with which a command refuses what it was given."""
    code, _, error = run(*arguments)
    assert code == 2, error
    assert error.startswith("sonoshard: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def test_folders_that_are_not_the_database(fresh: Path, tmp_path: Path) -> None:
    line = refusal("prepare", str(fresh), f"databases.busi.root={tmp_path}/none")
    assert f"{tmp_path}/none" in line
    (tmp_path / "other" / "images").mkdir(parents=True)
    line = refusal("prepare", str(fresh), f"databases.busi.root={tmp_path}/other")
    assert "benign" in line, "says what was expected"
    assert "images" in line, "says what was found"


def test_an_unknown_key(prepared: Path) -> None:
    assert "unknown key optimizer.lrr, did you mean lr?" in refusal("train", str(prepared), "optimizer.lrr=1")


def test_an_image_that_cannot_be_decoded_is_refused_or_skipped_and_counted(fresh: Path) -> None:
    image = fresh.parent / "Dataset_BUSI_with_GT" / "benign" / "benign (2).png"
    image.write_bytes(image.read_bytes()[:100])
    line = refusal("prepare", str(fresh))
    assert "1 of 24 images cannot be decoded" in line
    assert "benign (2)" in line
    assert "prepare.on_undecodable=skip" in line
    code, report, _ = run("prepare", str(fresh), "prepare.on_undecodable=skip")
    assert code == 0
    assert "1 skipped" in report
    assert "benign (2)" in report


def test_a_mask_of_another_size(fresh: Path) -> None:
    folder = fresh.parent / "Dataset_BUSI_with_GT" / "malignant"
    shutil.copy(folder / "malignant (2)_mask.png", folder / "malignant (1)_mask.png")
    line = refusal("prepare", str(fresh))
    assert "malignant (1)_mask.png is " in line
    assert "its image" in line


def test_withdrawn_images_are_not_trained_on(fresh: Path) -> None:
    folder = fresh.parent / "Dataset_BUSI_with_GT" / "benign"
    for path in folder.glob("benign (1)*"):
        path.unlink()
    assert run("prepare", str(fresh))[0] == 0
    line = refusal("train", str(fresh), "--dry-run")
    assert "manifest.parquet has changed since" in line
    assert "run `sonoshard encode` again" in line
    assert run("encode", str(fresh))[0] == 0
    assert run("train", str(fresh), "--dry-run")[0] == 0


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match=rf"{tmp_path} is being trained by process {os.getpid()} on .*wait for it"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    code, _, error = run("prepare", str(prepared), f"run={tmp_path}/file/run")
    assert code == 1
    assert error.startswith("sonoshard: ")
    assert error.count("\n") == 1


def test_an_empty_split(prepared: Path, tmp_path: Path) -> None:
    one_patient = "databases.one={kind: simulated, count: 2, size: 64}"
    line = refusal("prepare", str(prepared), one_patient, f"run={tmp_path}/run")
    assert "database one has no validation images: 2 images of 1 patients" in line
    assert "add images, or change the fractions" in line


def test_a_batch_that_cannot_be_divided(prepared: Path) -> None:
    line = refusal("train", str(prepared), "batch.global_size=6", "--nproc", "2")
    assert "nearest that work: 8" in line


def test_a_base_model_that_is_not_in_the_cache(prepared: Path) -> None:
    line = refusal("train", str(prepared), "model.base=stable-diffusion-v1-5/no-such-model", "--dry-run")
    assert "hf download stable-diffusion-v1-5/no-such-model" in line


def test_shards_of_another_vae_or_resolution(prepared: Path, tmp_path: Path) -> None:
    other = write_tiny_random_model(tmp_path / "other", seed=1)
    line = refusal("train", str(prepared), f"model.base={other}", "--dry-run")
    assert "were made with vae" in line or "were made with text_encoder" in line
    line = refusal("train", str(prepared), "model.resolution=128")
    assert "/shards has no shards of 128 pixels; it has 64: set model.resolution to one of them, or run" in line


def test_training_before_encoding(prepared: Path, tmp_path: Path) -> None:
    assert "run `sonoshard encode`" in refusal("train", str(prepared), f"run={tmp_path}/new")
    assert "run `sonoshard prepare` first" in refusal("encode", str(prepared), f"run={tmp_path}/new")


@pytest.mark.slow
def test_shards_of_several_resolutions_by_several_processes_and_parts(prepared: Path, tmp_path: Path) -> None:
    shards = f"shards={tmp_path}/shards"
    settings = [str(prepared), shards, "encode.resolutions=[64,32]", "encode.samples_per_shard=4"]
    code, output, _ = run("encode", *settings, "--part", "2", "--parts", "3")
    assert code == 0
    assert [line.rpartition("/")[2] for line in output.splitlines()] == ["64", "32"]
    line = refusal("train", str(prepared), shards, "--dry-run")
    assert re.search(r": 6 of the 8 shards in .*/64 are missing or not whole, the first of them: ", line), line
    # The other two parts of three: each again half of itself.
    for part in ("0", "1"):
        command = [sys.executable, "-m", "launch.cli", "encode", *settings, "--part", part, "--parts", "3"]
        result = subprocess.run([*command, "--nproc", "2"], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    settings = [shards, "encode.samples_per_shard=4"]
    assert run("train", str(prepared), *settings, "--dry-run")[0] == 0
    assert run("train", str(prepared), *settings, "model.resolution=32", "--dry-run")[0] == 0
    line = refusal("train", str(prepared), *settings, "model.resolution=128", "--dry-run")
    assert f"{tmp_path}/shards has no shards of 128 pixels; it has 64, 32: set model.resolution to one of them" in line


def test_paging_without_a_gpu_is_refused_before_anything_is_loaded(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = refusal("train", str(prepared), "optimizer.paged=true")
    assert "and this machine has no GPU: set optimizer.paged=false" in line
    code, output, _ = run("train", str(prepared), "optimizer.paged=true", "--dry-run")
    assert code == 0
    assert "note: optimizer.paged=true needs a GPU" in output


def test_a_dry_run_says_what_would_be_trained(prepared: Path) -> None:
    code, output, _ = run("train", str(prepared), "--dry-run", "--nproc", "2")
    assert code == 0
    assert "stage busi: 20 steps on busi (" in output
    assert "batch 8 = 2 ranks x micro batch 4 x 1 accumulated; ZeRO stage 2, adamw8bit" in output


@dataclass(frozen=True)
class Stopped:
    """A run of 20 steps that got a TERM in its first ones. lines: its stderr; done: steps in its log when it ended."""

    command: list[str]
    folder: Path
    exit_code: int
    lines: list[str]
    done: list[dict[str, Any]]

    def steps(self) -> list[dict[str, Any]]:
        return read_steps(self.folder / "stages" / "busi" / "steps.jsonl")

    def again(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command, *overrides], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def stopped(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    shards = prepared.parent / "run" / "shards"
    settings = [str(prepared), f"run={folder}", f"shards={shards}", "validation.every_steps=1"]
    command = [sys.executable, "-m", "launch.cli", "train", "--nproc", "2", *settings]
    with started(command) as process:
        assert process.stderr is not None
        lines = []
        for line in iter(process.stderr.readline, ""):
            lines.append(line)
            if "step 3, validation loss" in line:
                process.send_signal(signal.SIGTERM)
    run = Stopped(command, folder, process.returncode, lines, [])
    return replace(run, done=run.steps())


@pytest.mark.slow
def test_a_stop_by_signal_answers_75_and_the_next_calls_go_on(stopped: Stopped, tmp_path: Path) -> None:
    assert stopped.exit_code == 75, stopped.lines
    num_done = len(stopped.done)
    assert 3 <= num_done < 20
    other_batch = stopped.again("batch.global_size=16")
    assert other_batch.returncode == 2
    (line,) = other_batch.stderr.splitlines()
    assert "was trained with batch.global_size=8, this run has 16: set it back, or remove that folder" in line
    finished = stopped.again()
    assert finished.returncode == 0, finished.stderr
    assert f"resumed after step {num_done}" in finished.stderr
    assert [step["step"] for step in stopped.steps()] == list(range(1, 21))
    assert stopped.steps()[:num_done] == stopped.done
    (stopped.folder / "forgetting.json").unlink()
    assert ", finished" in stopped.again().stdout
    assert (stopped.folder / "forgetting.json").is_file(), "what a kill after the last stage left out is made up for"
    disk = tmp_path / "disk"
    longer = stopped.again("stages.0.steps=22", f"loader.copy_to={disk}", "loader.check_hashes=true")
    assert longer.returncode == 0, longer.stderr
    assert "resumed after step 20" in longer.stderr
    assert [step["step"] for step in stopped.steps()] == list(range(1, 23))
    (copy,) = disk.iterdir()
    assert (copy / "busi" / "train-000000.tar").is_file()


@pytest.mark.slow
def test_a_single_rank_is_the_process_itself(stopped: Stopped, tmp_path: Path) -> None:
    command = [part.replace(f"run={stopped.folder}", f"run={tmp_path}") for part in stopped.command]
    command[command.index("--nproc") + 1] = "1"
    with started([*command, "stages.0.steps=100000"]) as process:
        assert process.stderr is not None
        assert any("step 3, validation loss" in line for line in iter(process.stderr.readline, ""))
        assert rank_pids(process.pid) == {}
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 75, rest
    assert "stopped on request after step" in rest
    failed = subprocess.run(
        [*command, "stages.0.steps=100000", "optimizer.lr=1e30", "optimizer.max_bad_steps=2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert "RuntimeError: stage busi: the newest checkpoint is of step" in failed.stderr
    assert "the gradient was not finite in 2 steps in a row" in failed.stderr


@pytest.mark.slow
def test_ranks_do_not_outlive_the_process_that_started_them(stopped: Stopped, tmp_path: Path) -> None:
    command = [part.replace(f"run={stopped.folder}", f"run={tmp_path}") for part in stopped.command]
    command.append("stages.0.steps=100000")  # far beyond the test's patience
    with started(command) as process:
        assert process.stderr is not None
        assert any("step 3, validation loss" in line for line in iter(process.stderr.readline, ""))
        process.kill()
        # Ends when the last rank has closed its end; the first one says what it did.
        rest = process.stderr.read()
    assert "stopped on request after step" in rest
    with locked(tmp_path):
        assert newest_position(tmp_path / "stages" / "busi" / "checkpoints") is not None


@pytest.mark.slow
def test_a_second_interrupt_ends_a_run_at_once(stopped: Stopped, tmp_path: Path) -> None:
    command = [part.replace(f"run={stopped.folder}", f"run={tmp_path}") for part in stopped.command]
    settings = ("stages.0.steps=100000", "checkpoint.save_every_steps=2", "validation.every_steps=3")
    with started([*command, *settings]) as process:
        assert process.stderr is not None
        assert any("step 3, validation loss" in line for line in iter(process.stderr.readline, ""))
        pids = rank_pids(process.pid)
        assert not any(children(pid) for pid in pids.values()), "no workers whom a signal could end"
        # Rank 0 waits in a collective from now on, and no step boundary is reached: the worst that can be.
        os.kill(pids[1], signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        time.sleep(2)
        assert 0 in rank_pids(process.pid), "the first one waits for a step boundary"
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 60
        while 0 in rank_pids(process.pid):
            assert time.monotonic() < deadline, "rank 0 does not hear the second one"
            time.sleep(0.1)
        os.kill(pids[1], signal.SIGCONT)
        rest = process.stderr.read()
    assert process.returncode == 130
    line, *others = [line for line in rest.splitlines() if "step 3" not in line and "validation loss" not in line]
    # The stopped rank found one signal where there had been two; on a busy machine its grace is over before it ends.
    assert others in ([], ["sonoshard: interrupted; killed rank 1, which did not end"])
    assert line.startswith("sonoshard: interrupted; stage busi: the newest checkpoint is of step ")
    position = newest_position(tmp_path / "stages" / "busi" / "checkpoints")
    assert position is not None
    assert f"of step {position['step']};" in line
    with locked(tmp_path):
        pass


@pytest.mark.slow
def test_a_run_that_diverges_fails_and_saves_nothing_of_it(stopped: Stopped, tmp_path: Path) -> None:
    command = [part.replace(f"run={stopped.folder}", f"run={tmp_path}") for part in stopped.command]
    settings = (
        "optimizer.lr=1e30",
        "optimizer.warmup_steps=0",
        "optimizer.max_bad_steps=3",
        "validation.every_steps=null",
        "checkpoint.save_every_steps=1",  # also at the very step that spoils the weights, whose own gradient is finite
    )
    result = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "the gradient was not finite in 3 steps in a row up to step 4" in result.stderr
    assert not list((tmp_path / "stages" / "busi").glob("checkpoints/step-*"))
    log = read_steps(tmp_path / "stages" / "busi" / "steps.jsonl")
    assert log[-1]["grad_norm"] is None, "JSON knows no infinity"


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    program: Sequence[str] = [
        "-c",
        "import os, sys, threading; rank = os.environ['RANK']; sys.exit('broken') if rank == '1' else "
        "threading.Event().wait()",
    ]
    code = f"from launch.spawn import run_ranks; raise SystemExit(run_ranks({list(program)!r}, 2))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "broken" in result.stderr
