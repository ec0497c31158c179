"""A sample that is NaN in the shards: its step is skipped, it is named, and too many such steps end the run."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.loader import BatchSlicing, Loader
from distributed.checkpoint import find_checkpoint
from launch.config import RunConfig, load_config
from launch.facts import stage_order, stage_seed
from launch.run_shards import open_shards, shards_folder
from launch.stage import listed
from launch.step_log import read_steps
from tests.launch.damage import nan_latents
from tests.launch.skip_scenarios import SETTINGS


def ids_of_steps(config: RunConfig, count: int) -> list[set[str]]:
    """Return the samples of the first `count` steps."""
    stage, shards = config.stages[0], open_shards(config)
    slicing = BatchSlicing(config.batch.global_size, config.batch.micro_size, 0, 2)
    order = stage_order(config, stage, shards)
    loader = Loader(shards, order, slicing, config.augment, stage_seed(config, stage))
    return [set(loader.ids(step)) for step in range(count)]


@pytest.mark.slow
def test_a_bad_sample_is_named_and_too_many_bad_steps_fail(fresh: Path, tmp_path: Path) -> None:
    config = load_config(fresh)
    ids = ids_of_steps(config, 6)
    others = {entry.id for entry in open_shards(config).entries("busi", "train")} - ids[0]
    failed, skipped, stopped = (tmp_path / name for name in ("failed", "skipped", "stopped"))

    with nan_latents(shards_folder(config), "busi", others):
        # No save is due before the end: that of step 1 is made because the run fails.
        settings = [*SETTINGS, f"run={failed}", f"shards={config.shards_path}", "optimizer.max_bad_steps=2"]
        settings.append("checkpoint.save_every_steps=null")
        command = [sys.executable, "-m", "launch.cli", "train", str(fresh), "--nproc", "2", *settings]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    last_line = result.stderr.splitlines()[-1]
    assert "the newest checkpoint is of step 1" in last_line
    assert "not finite in 2 steps in a row up to step 3, where the loss is not finite of busi/" in last_line
    log = read_steps(failed / "stages" / "busi" / "steps.jsonl")
    assert [step["loss"] is None for step in log] == [False, True, True]
    assert [set(step.get("bad_ids", ())) for step in log] == [step & others for step in ids[:3]]
    found = find_checkpoint(failed / "stages" / "busi" / "checkpoints")
    assert found is not None
    assert found.position["step"] == 1

    sample = min(ids[1] - ids[0])
    code = "import sys; from launch.spawn import run_ranks; sys.exit(run_ranks(sys.argv[1:], 2))"
    program = ["-m", "tests.launch.skip_scenarios", str(fresh), str(failed), str(skipped), str(stopped), sample]
    result = subprocess.run([sys.executable, "-c", code, *program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "resumed after step 1" in result.stderr
    assert f"step 2 was skipped: the loss is not finite of {sample}\n" in result.stderr
    log = read_steps(skipped / "stages" / "busi" / "steps.jsonl")
    assert [step.get("bad_ids") for step in log] == [[sample] if sample in step else None for step in ids]

    # Stopped at the bad step, a run takes it again and goes the same way.
    assert "(its last steps were bad: stage busi: the newest checkpoint is of step 1)" in result.stderr
    assert read_steps(stopped / "stages" / "busi" / "steps.jsonl") == log
    weights = "stages/busi/model/unet/diffusion_pytorch_model.safetensors"
    assert (stopped / weights).read_bytes() == (skipped / weights).read_bytes()


def test_a_long_list_of_samples_is_cut() -> None:
    assert listed(["a", "b", "a"]) == "a, b"
    assert listed([str(number) for number in range(11)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
