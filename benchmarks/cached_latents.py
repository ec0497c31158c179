"""Measure what encoding once gains: samples/s on cached latents, beside diffusers' example, which encodes online.

`python -m benchmarks.cached_latents` prints a table and one JSON line. The same model, the same simulated images and
the same micro batch; forward, backward, clipping and optimizer step of each, from image or shard to new weights, in one
process (one thread each on a CPU, beside the thread that reads our shards ahead). The contenders take turns of a few
steps. The example is benchmarks/diffusers_example.py, with the optimizer that it has by default, and with
--use_8bit_adam. Columns:

    samples/s    of the median turn, wall time
    wall ratio   time of a sample, to that of the example with the same optimizer, the median round's
    cpu ratio    the same for the CPU time of the process
    encode once  what `encode` took, as so many epochs of the time that each later epoch saves
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.activations import hardware
from benchmarks.diffusers_example import Example
from benchmarks.random_model import write_random_model
from benchmarks.report import Beside, ReportTable, report
from data.loader import BatchSlicing, Loader
from distributed.engine import Engine
from distributed.placement import training_device, training_dtype
from distributed.rank import Rank, join_process_group, leave_process_group, rank_from_environment
from launch.config import RunConfig
from launch.facts import stage_order, stage_seed
from launch.networks import Networks
from launch.prepare import encode_databases, prepare_databases
from launch.quiet import quiet_libraries
from launch.run_shards import open_shards
from launch.step import Objective, train_step
from models.base import ModelConfig, noise_schedule, resolution_of

STEPS_A_TURN = 2
OPTIMIZERS = {"adamw": "torch's AdamW", "adamw8bit": "bitsandbytes' AdamW8bit"}
LEARNING_RATE = 1e-4


@dataclass
class Contender:
    """One way to train. step: trains one micro batch."""

    name: str
    optimizer: str
    step: Callable[[], object]
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def take_turn(self) -> None:
        """Train for a few steps and note the time of one."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(STEPS_A_TURN):
            self.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall_s.append((time.perf_counter() - wall_s) / STEPS_A_TURN)
        self.cpu_s.append((time.process_time() - cpu_s) / STEPS_A_TURN)


def configuration(folder: Path, base: str, resolution: int | None, count: int, micro_size: int) -> RunConfig:
    """Return a run on simulated images that have the resolution already."""
    size = resolution_of(ModelConfig(base=base, resolution=resolution))
    return RunConfig.model_validate(
        {
            "run": folder / "run",
            "model": {"base": base, "resolution": resolution},
            "databases": {"breast": {"kind": "simulated", "preset": "breast", "size": size, "count": count}},
            "batch": {"global_size": micro_size, "micro_size": micro_size},
            "ema": {"lengths": []},
            "stages": [{"name": "one", "databases": ["breast"], "steps": 1000}],
        }
    )


def ours(config: RunConfig, optimizer: str, rank: Rank) -> Contender:
    """Return our loop on the shards of a run, with ZeRO-2."""
    (stage,) = config.stages
    settings = config.optimizer.model_copy(update={"name": optimizer})
    slicing = BatchSlicing(config.batch.global_size, config.batch.micro_size, rank.index, rank.world_size)
    shards, seed = open_shards(config), stage_seed(config, stage)
    loader = Loader(shards, stage_order(config, stage, shards), slicing, config.stage_augment(stage), seed)
    networks = Networks.load(config, stage, training_dtype(config.precision), training_device(rank))
    engine = Engine(
        networks.trained,
        settings,
        config.zero,
        rank,
        precision=config.precision,
        micro_size=config.batch.micro_size,
        accumulation_steps=1,
    )
    objective = Objective(noise_schedule(config.model), config.stage_objective(stage), engine.device)
    denoiser, batches = networks.denoiser(engine.network), loader.batches(0, 10**9)
    return Contender("ours, cached", optimizer, lambda: train_step(engine, denoiser, objective, batches, LEARNING_RATE))


def theirs(config: RunConfig, name: str, rank: Rank) -> Contender:
    """Return diffusers' example on the images of a run."""
    from bitsandbytes.optim import AdamW8bit

    example = Example(config.model.base, config.manifest_path, config.batch.micro_size, training_device(rank))
    kind = AdamW8bit if name == "adamw8bit" else torch.optim.AdamW
    optimizer = kind(example.unet.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    batches = example.endless()

    def step() -> None:
        example.loss(example.unet, next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(example.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Contender("diffusers' example, online", name, step)


def measure(config: RunConfig, optimizers: Sequence[str], num_rounds: int) -> dict[str, Any]:
    """Return the rows of all contenders, and what preparing and encoding took. It joins and leaves a process group."""
    prepare_databases(config)
    began_s = time.perf_counter()
    encode_databases(config)
    encode_s = time.perf_counter() - began_s
    rank = rank_from_environment()
    join_process_group()
    contenders = [make(config, name, rank) for name in optimizers for make in (theirs, ours)]
    for turn in range(num_rounds + 1):  # the first is not counted: it makes the state
        for number in range(len(contenders)):
            contenders[(turn + number) % len(contenders)].take_turn()
    leave_process_group()
    rows = []
    for first, second in zip(contenders[::2], contenders[1::2], strict=True):
        for one in (first, second):
            rows.append(
                {
                    "contender": one.name,
                    "optimizer": one.optimizer,
                    "samples_per_s": config.batch.micro_size / statistics.median(one.wall_s[1:]),
                    "wall_ratio": statistics.median(
                        a / b for a, b in zip(one.wall_s[1:], first.wall_s[1:], strict=True)
                    ),
                    "cpu_ratio": statistics.median(a / b for a, b in zip(one.cpu_s[1:], first.cpu_s[1:], strict=True)),
                }
            )
    return {"rows": rows, "encode_s": encode_s}


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description="Training on cached latents beside encoding at every step.")
    parser.add_argument("--base", choices=("tiny", "sd15"), default="tiny", help="sd15: random weights (default: tiny)")
    parser.add_argument("--resolution", type=int, help="pixels; default: the model's")
    parser.add_argument("--count", type=int, default=128, help="simulated images")
    parser.add_argument("--micro-size", type=int, default=8, help="samples a step")
    parser.add_argument("--rounds", type=int, default=10, help=f"turns of {STEPS_A_TURN} steps that each takes")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="default: both")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = "tiny" if arguments.base == "tiny" else str(write_random_model(Path(folder) / "base"))
        config = configuration(Path(folder), base, arguments.resolution, arguments.count, arguments.micro_size)
        pixels = resolution_of(config.model)
        figures = measure(config, arguments.optimizers, arguments.rounds)
    rows, device = figures["rows"], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures["base"] = arguments.base
    saved_s = arguments.count * (1 / rows[-2]["samples_per_s"] - 1 / rows[-1]["samples_per_s"])
    figures["epochs_to_encode"] = figures["encode_s"] / saved_s if saved_s > 0 else None
    cells = [
        [
            row["contender"],
            row["optimizer"],
            f"{row['samples_per_s']:.2f}",
            f"{row['wall_ratio']:.3f}",
            f"{row['cpu_ratio']:.3f}",
            f"{figures['epochs_to_encode']:.1f} epochs" if row is rows[-1] and saved_s > 0 else "",
        ]
        for row in rows
    ]
    title = f"{figures['base']}, {pixels} px, micro batch {arguments.micro_size}, {hardware(device)}"
    head = ("contender", "optimizer", "samples/s", "wall ratio", "cpu ratio", "encode once")
    beside = [
        Beside(
            f"cached latents, {mine['optimizer']}",
            f"{mine['samples_per_s']:.2f} samples/s",
            f"diffusers' example with {OPTIMIZERS[mine['optimizer']]} {other['samples_per_s']:.2f} samples/s",
            1 / mine["wall_ratio"],
            "rate",
        )
        for other, mine in zip(rows[::2], rows[1::2], strict=True)
    ]
    report("cached_latents", [ReportTable(title, head, cells)], beside, figures)


if __name__ == "__main__":
    quiet_libraries()
    main()
