"""Runs as the ranks of a process group: a small UNet through the engine, with checkpoints. See test_engine.py.

python -m tests.distributed.engine_scenarios ACTION FOLDER
    save     5 steps, save, 3 more, save; then a second engine loads step 5 and takes the same 3 steps, saved apart
    recut    load FOLDER's step 5 at this world size, save it apart, and take 3 more steps
Each rank prints nothing; the first writes FOLDER/ACTION-WORLD_SIZE.json.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel

from distributed.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.ema import ShardedEma
from distributed.engine import Engine
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

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.micro_size = GLOBAL_SIZE // rank.world_size
        self.engine = Engine(
            small_unet(),
            CONFIG,
            ZeroConfig(stage=2),
            rank,
            precision="fp32",
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
            loss = (self.engine.network(noisy, timesteps, text).sample - target).square().mean()
            self.engine.accumulate(loss)
            assert self.engine.finish_micro_batch(CONFIG.lr) is not None
            self.ema.update(self.engine.num_steps)
            mean = loss.detach() / self.rank.world_size
            dist.all_reduce(mean)
            self.losses.append(float(mean))

    def save(self, folder: Path, step: int) -> None:
        save_checkpoint(folder, self.engine, self.ema.slices, {"step": step}, keep_last=9)

    def load(self, folder: Path) -> None:
        found = find_checkpoint(folder)
        assert found is not None
        load_checkpoint(found, self.engine, self.ema.slices)


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
