"""As the ranks of a process group: goes on after a failure, then meets a sample whose latents are NaN.

python -m tests.launch.skip_scenarios CONFIG FAILED SKIPPED STOPPED ID
"""

import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from distributed.checkpoint import newest_position
from distributed.engine import Engine
from distributed.rank import Rank, from_first_rank, join_process_group, leave_process_group, rank_from_environment
from distributed.stop_request import StoppedOnRequest, StopRequest
from launch.config import RunConfig, load_config
from launch.failure import end_at_once
from launch.imports import uncollected_imports
from launch.run_shards import shards_folder
from launch.step import TrainedStep, train_step
from launch.train import train
from models.stable_diffusion import import_libraries
from tests.launch.conftest import own_run
from tests.launch.damage import nan_latents

SETTINGS = ("checkpoint.save_every_steps=1", "validation.every_steps=null", "preview.every_steps=null")


def state(engine: Engine) -> list[Tensor]:
    """Return copies of the weights that the module computes with, and of this rank's slices of the engine's state."""
    slices = [tensor for group in engine.groups for tensor in (group.master, *group.moments.values())]
    return [tensor.detach().clone() for tensor in (*engine.module.parameters(), *slices)]


def watched_train_step(engine: Engine, *arguments: Any) -> TrainedStep:
    """Take a step, and look whether it changed anything."""
    before = state(engine)
    trained = train_step(engine, *arguments)
    is_unchanged = all(map(torch.equal, before, state(engine)))
    assert is_unchanged == trained.result.is_skipped
    return trained


def stop_at_the_bad_step(config: RunConfig, rank: Rank) -> None:
    """Train until a step is skipped, then stop as if a signal had come; no save was due before."""
    stop = StopRequest()

    def stopping_train_step(engine: Engine, *arguments: Any) -> TrainedStep:
        trained = train_step(engine, *arguments)
        if trained.result.is_skipped and rank.is_first:
            stop.received = signal.SIGTERM
        return trained

    checkpoint = config.checkpoint.model_copy(update={"save_every_steps": None})
    with patch("launch.stage.train_step", stopping_train_step), pytest.raises(StoppedOnRequest):
        train(config.model_copy(update={"checkpoint": checkpoint}), rank, stop)
    position = newest_position(config.stage_path(config.stages[0]) / "checkpoints")
    assert position is not None
    assert position["step"] == 1, "the last good one"


def fail_of_a_gradient(config: RunConfig, rank: Rank) -> None:
    """Train with finite losses whose gradients are not: the samples of the whole step are named, as none stands out."""
    accumulate = Engine.accumulate

    def without_gradient(engine: Engine, loss: Tensor) -> None:
        accumulate(engine, loss + (0 * loss).sqrt())

    optimizer = config.optimizer.model_copy(update={"max_bad_steps": 1})
    with (
        patch.object(Engine, "accumulate", without_gradient),
        pytest.raises(
            RuntimeError, match=r"up to step 1, where every loss is finite but the gradient is not, of busi/"
        ),
    ):
        train(config.model_copy(update={"optimizer": optimizer}), rank, StopRequest())


def main(config_path: Path, failed: Path, skipped: Path, stopped: Path, sample: str) -> None:
    config = load_config(config_path, [*SETTINGS, "stages.0.steps=6"])
    with uncollected_imports():  # as a rank does, or every stage's end looks through all that was imported
        import_libraries()
    rank = rank_from_environment()
    join_process_group()
    train(own_run(config, failed), rank, StopRequest())
    damaged = nan_latents(shards_folder(config), "busi", [sample])
    from_first_rank(rank, damaged.__enter__)
    with patch("launch.stage.train_step", watched_train_step):
        train(own_run(config, skipped), rank, StopRequest())
    stop_at_the_bad_step(own_run(config, stopped), rank)
    train(own_run(config, stopped), rank, StopRequest())
    dist.barrier()
    fail_of_a_gradient(own_run(config, stopped.with_name("gradient")), rank)
    if rank.is_first:
        damaged.__exit__(None, None, None)
    leave_process_group()
    end_at_once(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
