"""Runs as the ranks of a process group: a small UNet through the engine, with checkpoints. See test_engine.py.

python -m tests.distributed.engine_scenarios ACTION FOLDER
    save     5 steps, save, 3 more, save; then a second engine loads step 5 and takes the same 3 steps, saved apart
    recut    load FOLDER's step 5 at this world size, save it apart, and take 3 more steps
    fail     the last rank fails while the averaged weights are lent
The first rank writes FOLDER/ACTION-WORLD_SIZE.json.
"""

import gc
import json
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel

from distributed.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.ema import ShardedEma
from distributed.engine import Engine, training_dtype
from distributed.rank import Rank, join_process_group, leave_process_group, rank_from_environment

GLOBAL_SIZE = 12  # divisible by 1, 2, 3 and 4 ranks
CONFIG = OptimizerConfig(lr=1e-3, weight_decay=0.1)


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


class Run:
    """An engine over the small UNet, with its average and its losses."""

    def __init__(self, rank: Rank, optimizer: str = "adamw8bit", zero_stage: int = 2, precision: str = "fp32") -> None:
        self.rank = rank
        self.micro_size = GLOBAL_SIZE // rank.world_size
        self.engine = Engine(
            small_unet().to(training_dtype(precision)),  # type: ignore[arg-type]
            CONFIG.model_copy(update={"name": optimizer}),
            ZeroConfig.model_validate({"stage": zero_stage}),
            rank,
            precision=precision,  # type: ignore[arg-type]
            micro_size=self.micro_size,
            accumulation_steps=1,
        )
        self.ema = ShardedEma([group.master for group in self.engine.groups], 0.1)
        self.losses: list[float] = []

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            rows = slice(self.rank.index * self.micro_size, (self.rank.index + 1) * self.micro_size)
            generator = torch.Generator().manual_seed(step)
            noisy = torch.randn(GLOBAL_SIZE, 4, 8, 8, generator=generator)[rows]
            target = torch.randn(GLOBAL_SIZE, 4, 8, 8, generator=generator)[rows]
            timesteps = torch.randint(0, 1000, (GLOBAL_SIZE,), generator=generator)[rows]
            text = torch.randn(GLOBAL_SIZE, 6, 16, generator=generator)[rows]
            noisy, text = noisy.to(self.engine.dtype), text.to(self.engine.dtype)
            loss = (self.engine.network(noisy, timesteps, text).sample.float() - target).square().mean()
            self.engine.accumulate(loss)
            assert self.engine.finish_micro_batch(CONFIG.lr) is not None
            self.ema.update(self.engine.num_steps)
            mean = loss.detach() / self.rank.world_size
            dist.all_reduce(mean)
            self.losses.append(float(mean))

    def save(self, folder: Path, step: int) -> None:
        save_checkpoint(folder, self.engine, self.ema.slices, {"step": step}, keep_last=9)

    def check_that_it_is_freed(self) -> None:
        master = weakref.ref(self.engine.groups[0].master)
        self.engine.close()
        del self.engine, self.ema
        gc.collect()
        assert master() is None, "the next stage would find this one's state still in memory"

    def load(self, folder: Path) -> None:
        found = find_checkpoint(folder)
        assert found is not None
        load_checkpoint(found, self.engine, self.ema.slices)


def check_damage(run: Run, folder: Path) -> None:
    """A damaged checkpoint is skipped and named; the next save of its step replaces it; old ones are deleted."""
    for step in (1, 2, 3):
        save_checkpoint(folder, run.engine, run.ema.slices, {"step": step}, keep_last=2)
    if run.rank.is_first:
        assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000002", "step-00000003"]
        slices = folder / "step-00000003" / "slices-00001-of-00002.safetensors"
        slices.write_bytes(slices.read_bytes()[:-4])
        found = find_checkpoint(folder)
        assert found is not None
        assert found.position == {"step": 2}
        assert found.skipped == (f"step-00000003: {slices.name} does not match its hash",)
    dist.barrier()
    save_checkpoint(folder, run.engine, run.ema.slices, {"step": 3}, keep_last=2)
    found = find_checkpoint(folder)
    assert found is not None
    assert found.position == {"step": 3}


def check_a_failed_save(run: Run, folder: Path) -> None:
    """A folder that the first rank cannot make is an error of every rank, and nothing is left behind."""
    blocker = folder / "a-file"
    if run.rank.is_first:
        blocker.write_text("not a folder")
    dist.barrier()
    with pytest.raises(RuntimeError, match="rank 0: could not write the checkpoint"):
        save_checkpoint(blocker / "checkpoints", run.engine, run.ema.slices, {"step": 1}, keep_last=2)


def variants(rank: Rank, folder: Path) -> None:
    """Write the losses of four steps with other optimizers, ZeRO stages and precisions."""
    losses = {}
    for settings in (("adamw8bit", 1, "fp32"), ("adamw", 2, "fp32"), ("adamw8bit", 2, "bf16")):
        run = Run(rank, *settings)
        run.train(0, 4)
        losses["-".join(map(str, settings))] = run.losses
        run.engine.close()
    if rank.is_first:
        (folder / "variants.json").write_text(json.dumps(losses))


def main(action: str, folder: Path) -> None:
    rank = rank_from_environment()
    join_process_group()
    run = Run(rank)
    if action == "save":
        run.train(0, 5)
        run.save(folder / "first", 5)
        again = Run(rank)
        again.load(folder / "first")
        run.train(5, 8)
        run.save(folder / "straight", 8)
        again.train(5, 8)
        again.save(folder / "resumed", 8)
        assert run.losses[5:] == again.losses
        again.check_that_it_is_freed()
        check_damage(run, folder / "damaged")
        check_a_failed_save(run, folder)
        variants(rank, folder)
    elif action == "fail":
        with run.engine.weights_from(run.ema.slices):
            if rank.index == rank.world_size - 1:
                raise ArithmeticError("this rank alone")
    else:
        run.load(folder / "first")
        run.save(folder / f"recut-{rank.world_size}", 5)
        run.train(5, 8)
    if rank.is_first:
        # What the module computes with is what the averaged weights say while they are lent, and the master after.
        group = run.engine.groups[0]
        before = next(run.engine.module.parameters()).detach().clone()
        facts = {"losses": run.losses, "slice": group.master.numel(), "numel": [g.numel for g in run.engine.groups]}
        (folder / f"{action}-{rank.world_size}.json").write_text(json.dumps(facts))
    with run.engine.weights_from(run.ema.slices) as module:
        lent = next(module.parameters()).detach().clone()
    if rank.is_first:
        assert not torch.equal(before, lent), "the average is not the newest weights"
        assert torch.equal(before, next(run.engine.module.parameters()))
    leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
