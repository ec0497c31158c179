"""Runs as the ranks of a process group: whole runs of 20 steps that differ in what must not matter.

python -m tests.launch.train_scenarios CONFIG FOLDER     writes FOLDER/NAME-WORLD_SIZE/stages/busi/ for each scenario
"""

import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_pre_hook

from data.loader import Batch, validation_batches
from distributed.checkpoint import newest_position
from distributed.config import EmaConfig
from distributed.rank import Rank, join_process_group, leave_process_group, rank_from_environment
from distributed.stop_request import StoppedOnRequest, StopRequest, heard_signals
from launch.config import RunConfig, load_config
from launch.failure import end_at_once
from launch.imports import uncollected_imports
from launch.merged_start import write_merged_start
from launch.run_sections import BatchConfig
from launch.stage_checkpoints import StageCheckpoints
from launch.stage_config import EarlyStopConfig, StageConfig
from launch.step import TrainedStep, train_step
from launch.train import train
from models.record import RECORD_FILE
from models.sampling import sample_from_embeddings
from models.stable_diffusion import import_libraries
from models.trained_part import LoraConfig
from tests.launch.conftest import own_run
from tests.launch.event_files import seconds_between_event_files


def main(config: RunConfig, folder: Path) -> None:
    with uncollected_imports():  # as a rank does, or every stage's end looks through all that was imported
        import_libraries()
    rank = rank_from_environment()
    join_process_group()

    def named(name: str, micro_size: int) -> RunConfig:
        batch = BatchConfig(global_size=8, micro_size=micro_size)
        own = own_run(config, folder / f"{name}-{rank.world_size}")
        return own.model_copy(update={"batch": batch})

    with every_rank_calling_the_unet_alike(rank), first_rank_alone_looking_for_models(rank):
        train(named("micro-4", 4), rank, StopRequest())
    train(named("micro-2", 2), rank, StopRequest())
    if rank.world_size == 2:
        stopped = named("stopped", 4)
        for start, number in enumerate(heard_signals()):
            with patch.object(StageCheckpoints, "save", autospec=True, side_effect=StageCheckpoints.save) as save:
                train_until_stopped(stopped, rank, 3, number)
            assert saved_position(stopped)["step"] == 3 * (start + 1)
            assert save.call_count == 1, "what a start goes on from is not written again"
        train_after_damage(stopped, rank)
        for stage in (0, 3):
            zero = config.zero.model_copy(update={"stage": stage})
            train(named(f"zero-{stage}", 4).model_copy(update={"zero": zero}), rank, StopRequest())
            # At stage 0 in fp32 the weights, in whose place the average is validated, are their own master.
            validating = named(f"validating-{stage}", 4).model_copy(update={"zero": zero})
            for step, validated in ((10, {"0"}), (20, {"0", "10"})):
                train_until_stopped_in_validation(validating, rank)
                position = saved_position(validating)
                assert (position["step"], position["validation_losses"].keys()) == (step, validated)
            train(validating, rank, StopRequest())
            previewing = named(f"previewing-{stage}", 4).model_copy(update={"zero": zero})
            train_until_stopped_in_preview(previewing, rank)
            position = saved_position(previewing)
            assert (position["step"], position["validation_losses"].keys()) == (10, {"0", "10"})
            train(previewing, rank, StopRequest())
        two_stages(named("two-stages", 4), rank)
        curriculum(named("curriculum", 4), rank)
        not_finite(named("not-finite", 4), rank)
        diverged(named("diverged", 4), rank)
    control_net(named("control", 4), rank)
    leave_process_group()
    end_at_once(0)


@contextmanager
def every_rank_calling_the_unet_alike(rank: Rank) -> Iterator[None]:
    """Check that the ranks' calls of the UNet, in training, validation and previews, are as many and of equal sizes."""
    sizes: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Fake tensors are the first rank's, which predicts its memory.
        if isinstance(module, UNet2DConditionModel) and not isinstance(inputs[0], FakeTensor):
            sizes.append(tuple(inputs[0].shape))

    hook = register_module_forward_pre_hook(note)
    yield
    hook.remove()
    of_ranks = [sizes] * rank.world_size
    dist.all_gather_object(of_ranks, sizes)
    assert len(sizes) > 20, "the calls were seen"
    assert all(others == sizes for others in of_ranks)


@contextmanager
def first_rank_alone_looking_for_models(rank: Rank) -> Iterator[None]:
    """Check that no other rank looks whether a stage is finished: on NFS it would not see the model for a while."""
    with patch.object(RunConfig, "is_finished", autospec=True, side_effect=RunConfig.is_finished) as look:
        yield
    assert look.called == rank.is_first


def two_stages(config: RunConfig, rank: Rank) -> None:
    """Stop at the last step of the first of two stages, ever again, then go on with LoRA. Two averages are kept."""
    first = config.stages[0].model_copy(update={"name": "first", "steps": 3})
    part = {"trains": "lora", "lora": LoraConfig(rank=4, alpha=8), "optimizer": {"l2_sp": 1.0}}
    second = first.model_copy(update={"name": "second", **part})
    config = config.model_copy(update={"stages": [first, second], "ema": EmaConfig(lengths=[0.1, 0.05])})
    train_until_stopped(config, rank, 3)
    assert saved_position(config)["validation_losses"].keys() == {"0"}, "it is saved before it is validated"
    train_until_stopped(config, rank, 0)
    assert saved_position(config)["validation_losses"].keys() == {"0", "3"}, "which the next start makes up"
    assert not config.is_finished(first)
    train_until_stopped(config, rank, 0)
    assert config.is_finished(first), "a start that is always stopped at once gets on all the same"
    assert not config.stage_path(second).exists(), "it does not begin the next stage"
    train(config, rank, StopRequest())


def train_until_stopped(config: RunConfig, rank: Rank, num_steps: int, number: signal.Signals = signal.SIGUSR1) -> None:
    """Train until the last rank gets a real signal in its `num_steps`-th step, over all stages; 0: before all."""
    stop = StopRequest()
    stop.listen()
    num_begun = 0

    def signal_where_due() -> None:
        if num_begun == num_steps and rank.index == 1:
            os.kill(os.getpid(), number)

    def signalled_step(*arguments: Any) -> TrainedStep:
        nonlocal num_begun
        num_begun += 1
        signal_where_due()
        return train_step(*arguments)

    signal_where_due()
    try:
        with patch("launch.stage.train_step", signalled_step):
            train(config, rank, stop)
    except StoppedOnRequest:
        return
    raise AssertionError(f"{number.name} in step {num_steps} did not stop the run")


def train_after_damage(config: RunConfig, rank: Rank) -> None:
    """Train to the end after the newest checkpoint was damaged: it is named, and the one before is gone on from."""
    folder = config.stage_path(config.stages[0]) / "checkpoints"
    newest, before = (path.name for path in sorted(folder.glob("step-*"), reverse=True)[:2])
    slices = folder / newest / "slices-00001-of-00002.safetensors"
    if rank.is_first:
        content = bytearray(slices.read_bytes())
        content[-1] ^= 1  # one bit
        slices.write_bytes(content)
    dist.barrier()
    said: list[str] = []
    with patch("launch.stage.Stage._say", lambda _, line: said.append(line)):
        train(config, rank, StopRequest())
    step = int(before.removeprefix("step-"))
    assert said[0] == (f"skipped: {newest}: {slices.name} does not match its hash\nresumed after step {step}")


def train_until_stopped_in_validation(config: RunConfig, rank: Rank) -> None:
    """Train until the last rank gets a signal after the first batch of this start's second validation.

    The first one is of the start, and made whole.
    """
    stop = StopRequest()
    stop.listen()
    taken: list[int] = []  # batches by validation

    def signalled_batches(*arguments: Any, **settings: Any) -> Iterator[Batch]:
        taken.append(0)
        for batch in validation_batches(*arguments, **settings):
            if taken[1:] == [1] and rank.index == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            taken[-1] += 1
            yield batch

    try:
        with patch("launch.validation.validation_batches", signalled_batches):
            train(config, rank, stop)
    except StoppedOnRequest:
        assert len(taken) == 2
        assert taken[1] == 2 <= taken[0], "what was asked for is seen before the second batch is looked at"
        return
    raise AssertionError("a signal during the validation did not stop the run")


def train_until_stopped_in_preview(config: RunConfig, rank: Rank) -> None:
    """Train until the last rank gets a signal in the first step of the sampler, in this start's second preview.

    The first one is of the start, and made whole.
    """
    stop = StopRequest()
    stop.listen()
    taken: list[int] = []  # steps of the sampler by preview

    def signalled_sampling(unet: nn.Module, *arguments: Any, **settings: Any) -> NDArray[np.uint8]:
        taken.append(0)

        def note(*_: Any) -> None:
            taken[-1] += 1
            if taken[1:] == [1] and rank.index == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

        hook = unet.register_forward_pre_hook(note)
        try:
            return sample_from_embeddings(unet, *arguments, **settings)
        finally:
            hook.remove()

    try:
        with patch("launch.preview.sample_from_embeddings", signalled_sampling):
            train(config, rank, stop)
    except StoppedOnRequest:
        assert taken == [config.preview.sampling.steps, 1], "what was asked for is seen before the second step"
        return
    raise AssertionError("a signal during the preview did not stop the run")


def saved_position(config: RunConfig) -> dict[str, Any]:
    """Return the newest position of the first stage."""
    position = newest_position(config.stage_path(config.stages[0]) / "checkpoints")
    assert position is not None
    return position


def curriculum(config: RunConfig, rank: Rank) -> None:
    """Start from a merge, and end early; once more, stopped on the way."""
    one = config.stages[0].model_copy(update={"name": "one", "steps": None, "epochs": 0.9})
    other = one.model_copy(update={"name": "other", "start": "base", "steps": 3, "epochs": None})
    # A rate at which the loss soon rises.
    updates = {"start": {"one": 3.0, "other": 1.0}, "steps": 40, "optimizer": {"lr": 0.05, "warmup_steps": 0}}
    merged = other.model_copy(update={"name": "merged", "early_stop": EarlyStopConfig(patience=2), **updates})
    validation = config.validation.model_copy(update={"every_steps": 2})
    config = config.model_copy(update={"stages": [one, other, merged], "validation": validation})
    train(config, rank, StopRequest())
    stopped = own_run(config, config.run.with_name("curriculum-stopped"))
    num_before = json.loads((config.stage_model(one) / RECORD_FILE).read_text(encoding="utf-8"))["steps"] + 3
    dist.barrier()  # every rank has read it
    if rank.is_first:
        check_the_merged_start(config, one, merged)
    train_until_stopped(stopped, rank, num_before + 3)
    assert not stopped.is_finished(merged)
    train(stopped, rank, StopRequest())


def check_the_merged_start(config: RunConfig, one: StageConfig, merged: StageConfig) -> None:
    """A merge is made anew where one of its stages was trained anew, if for as many steps, and else is left."""
    start, record = config.stage_start(merged) / RECORD_FILE, config.stage_model(one) / RECORD_FILE
    before = start.stat().st_ino
    write_merged_start(config, merged)
    assert start.stat().st_ino == before
    content = record.read_text(encoding="utf-8")
    record.write_text(content + "\n", encoding="utf-8")  # a record of another training
    write_merged_start(config, merged)
    assert start.stat().st_ino != before
    record.write_text(content, encoding="utf-8")


def not_finite(config: RunConfig, rank: Rank) -> None:
    """Train on, though no validation loss is finite."""
    stage = config.stages[0].model_copy(update={"steps": 2})
    with patch("launch.validation.mean_loss", lambda *_: math.inf):
        train(config.model_copy(update={"stages": [stage]}), rank, StopRequest())


def diverged(config: RunConfig, rank: Rank) -> None:
    """Fail where the last weights give no finite loss on the samples of their own step: they are no model.

    A stop after such a step says that it is not kept.
    """
    stage = config.stages[0].model_copy(update={"steps": 2})
    config = config.model_copy(update={"stages": [stage]})
    told = "there is no checkpoint yet; the weights after step 2 give a loss that is not finite"
    with patch("launch.stage.mean_loss", lambda *_: math.inf), pytest.raises(RuntimeError, match=told):
        train(config, rank, StopRequest())
    assert not config.is_finished(stage)
    early = stage.model_copy(update={"early_stop": EarlyStopConfig(patience=1)})
    updates = {"stages": [early], "run": config.run.with_name("diverged-early")}
    with (
        patch("launch.stage.mean_loss", lambda *_: math.inf),
        patch("launch.validation.mean_loss", lambda *_: math.inf),
        pytest.raises(RuntimeError, match=r"the weights after step \d give a loss that is not finite"),
    ):
        train(config.model_copy(update=updates), rank, StopRequest())
    said: list[str] = []
    stopped = patch("launch.stage.Stage._say", lambda _, line: said.append(line))
    with patch("launch.stage.mean_loss", lambda *_: math.inf), stopped:
        train_until_stopped(own_run(config, config.run.with_name("diverged-stopped")), rank, 1)
    told = "after step 1 (which is not kept: stage busi: there is no checkpoint yet)"
    assert any(told in line for line in said), said


def control_net(config: RunConfig, rank: Rank) -> None:
    """Train the UNet and then a ControlNet on it; on 2 ranks once more, stopped in the middle, and under ZeRO-3."""
    first = config.stages[0].model_copy(update={"name": "first", "steps": 2})
    augment = {"hint_dropout": 0.3, "caption_dropout": 0.5}
    control = first.model_copy(update={"name": "control", "kind": "controlnet", "steps": 6, "augment": augment})
    config = config.model_copy(update={"stages": [first, control]})
    with every_rank_calling_the_unet_alike(rank):
        train(config, rank, StopRequest())
    if rank.world_size == 1:
        return
    stopped = own_run(config, config.run.with_name("control-stopped"))
    train_until_stopped(stopped, rank, 2 + 3)
    assert not stopped.is_finished(control)
    train(stopped, rank, StopRequest())
    zero_3 = own_run(config, config.run.with_name("control-zero-3"))
    train(zero_3.model_copy(update={"zero": config.zero.model_copy(update={"stage": 3})}), rank, StopRequest())


if __name__ == "__main__":
    with seconds_between_event_files():
        main(load_config(Path(sys.argv[1])), Path(sys.argv[2]))
