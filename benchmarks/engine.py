"""Measure the engine against plain torch: ms a step, side by side on the same UNet, seeds and data.

`python -m benchmarks.engine` prints two tables and one JSON line. The first: our engine at each ZeRO stage against a
plain loop (1 process) and torch's DistributedDataParallel (2), on the built-in UNet. The second, on a CPU: the 8-bit
step alone (benchmarks/blockwise.py). On CUDA there is 1 process, in bf16.

Contenders take turns of a few steps, so that other work on the machine meets all alike. Columns:

    wall ms          of one step, the median turn's; every process has 1 thread
    wall ratio       to the first contender's in the same round, the median round's. That one has torch's own AdamW as
                     it comes, or bitsandbytes' 8-bit one; "fused" has torch's fastest, "bitsandbytes" the 32-bit one
                     of which ours is made
    cpu ratio        the same for the CPU time of the first process, in which waiting does not count
    loss difference  the largest of any step, relative: none may skip work

Limits, and exit code 1 where one is not kept: ZeRO-1 takes at most 1.15 and ZeRO-2 1.25 times the wall time of plain
torch or DDP, and the 8-bit step in chunks at most that of the stock one. Fewer than 4 rounds are not judged.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.activations import hardware
from benchmarks.blockwise import NUM_ELEMENTS, compare_steps
from benchmarks.plain_loop import AdamW32, OfStep, engine_step, plain_step
from benchmarks.report import Beside, Limit, ReportTable, report
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.engine import Engine
from distributed.placement import training_device, training_dtype
from distributed.rank import Rank, join_process_group, leave_process_group, rank_from_environment
from launch.freed_memory import keep_freed_memory
from launch.spawn import run_ranks
from models.base import ModelConfig, latent_shape, noise_schedule, text_shape
from models.objective import ObjectiveConfig, denoising_loss
from models.stable_diffusion import load_unet

BASE = ModelConfig(base="tiny")
NUM_BATCHES = 4
STEPS_A_TURN = 3
# Wall time over that of plain torch or DDP; of the 8-bit step in chunks over bitsandbytes' own.
TIME_LIMITS = {"ZeRO-1": 1.15, "ZeRO-2": 1.25}
CHUNKED_LIMIT = 1.0
MIN_JUDGED_ROUNDS = 4
OTHER_ADAMW: tuple[AdamW32, ...] = ("fused", "bitsandbytes")
# float32 losses differ by the order of sums; stock AdamW8bit keeps matrices below 4096 elements in 32 bits, ours in 8;
# in bf16 ours computes the whole network in it, torch's autocast leaves norms in float32.
TOLERANCES = {"adamw": 1e-4, "adamw8bit": 1e-3, "bf16": 2e-2}


class Task:
    """A rank's micro batches, drawn by seed, and their loss."""

    def __init__(self, rank: Rank, micro_size: int, device: torch.device) -> None:
        schedule = noise_schedule(BASE)
        self._schedule = replace(schedule, alpha_bar_T=schedule.alpha_bar_T.to(device))
        self._batches = []
        for number in range(NUM_BATCHES):
            generator = torch.Generator().manual_seed(number * rank.world_size + rank.index)
            latents_BCHW = torch.randn(micro_size, *latent_shape(BASE), generator=generator)
            noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator)
            timesteps_B = torch.randint(schedule.num_timesteps, (micro_size,), generator=generator)
            text_BLD = torch.randn(micro_size, *text_shape(BASE), generator=generator)
            self._batches.append([tensor.to(device) for tensor in (latents_BCHW, noise_BCHW, timesteps_B, text_BLD)])

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Return the mean loss of the micro batch of a step."""
        return denoising_loss(network, self._schedule, ObjectiveConfig(), *self._batches[step % NUM_BATCHES]).mean()


@dataclass
class Contender:
    """One way to train, and what it took."""

    name: str
    train: OfStep
    # ZeRO-3 puts DeepSpeed's own in the place of torch's for good, and the others must not compute with it.
    linear: Callable[..., Tensor]
    losses: list[Tensor] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def take_turn(self) -> None:
        """Train for a few steps and note the time of one."""
        nn.functional.linear = self.linear
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        self.losses += [self.train(len(self.losses) + step) for step in range(STEPS_A_TURN)]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall_ms.append((time.perf_counter() - wall_s) / STEPS_A_TURN * 1e3)
        self.cpu_ms.append((time.process_time() - cpu_s) / STEPS_A_TURN * 1e3)


def theirs(config: OptimizerConfig, rank: Rank, task: Task, adamw: AdamW32 = "torch") -> Contender:
    """Return a plain loop: weights in float32 (on CUDA under autocast), clipping, and AdamW."""
    device = training_device(rank)
    unet = load_unet(BASE, torch.float32).to(device)
    network = unet if rank.world_size == 1 else DistributedDataParallel(unet)
    train = plain_step(unet, config, partial(task.loss, network), is_bf16=device.type == "cuda", adamw=adamw)
    name = "plain torch" if rank.world_size == 1 else "torch DDP"
    return Contender(name if adamw == "torch" else f"{name}, {adamw}", train, nn.functional.linear)


def ours(config: OptimizerConfig, stage: int, rank: Rank, task: Task, micro_size: int) -> Contender:
    """Return the engine at one ZeRO stage."""
    zero = ZeroConfig.model_validate({"stage": stage})
    unet, plain_linear = load_unet(BASE, training_dtype("auto")), nn.functional.linear
    engine = Engine(unet, config, zero, rank, precision="auto", micro_size=micro_size, accumulation_steps=1)

    train = engine_step(engine, config, partial(task.loss, engine.network))
    contender = Contender(f"ZeRO-{stage}", train, nn.functional.linear)
    nn.functional.linear = plain_linear
    return contender


def compare(config: OptimizerConfig, rank: Rank, micro_size: int, num_rounds: int) -> list[dict[str, Any]]:
    """Return the rows of one optimizer, torch's first. Collective.

    Raises: RuntimeError as `loss_difference` does.
    """
    task = Task(rank, micro_size, training_device(rank))
    contenders = [theirs(config, rank, task), *(ours(config, stage, rank, task, micro_size) for stage in range(4))]
    if config.matrix_bits == 32:
        contenders += [theirs(config, rank, task, adamw) for adamw in OTHER_ADAMW]
    for turn in range(num_rounds + 1):  # the first is not counted: it makes the state
        for number in range(len(contenders)):
            contenders[(turn + number) % len(contenders)].take_turn()
    first = contenders[0]
    return [
        {
            "optimizer": config.name,
            "processes": rank.world_size,
            "contender": contender.name,
            "wall_ms": round(statistics.median(contender.wall_ms[1:]), 1),
            "wall_ratio": median_ratio(contender.wall_ms[1:], first.wall_ms[1:]),
            "cpu_ratio": median_ratio(contender.cpu_ms[1:], first.cpu_ms[1:]),
            "loss_difference": loss_difference(contender, first, config),
        }
        for contender in contenders
    ]


def loss_difference(contender: Contender, first: Contender, config: OptimizerConfig) -> float:
    """Return the largest difference of a step's loss to that of `first`, relative.

    Raises: RuntimeError if it is more than rounding, or if training moved the loss so little that it says nothing.
    """
    losses, expected = torch.stack(contender.losses).tolist(), torch.stack(first.losses).tolist()
    tolerance = TOLERANCES["bf16" if torch.cuda.is_available() else config.name]
    difference = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    moved = abs(losses[(len(losses) - 1) // NUM_BATCHES * NUM_BATCHES] / losses[0] - 1)  # on the first batch
    if not difference < tolerance < moved:
        raise RuntimeError(
            f"{contender.name}, {config.name}: losses differ by {difference:.1e}, and training moved them by"
            f" {moved:.1e}; at most and at least {tolerance:.0e} are needed"
        )
    return difference


def median_ratio(mine: list[float], theirs: list[float]) -> float:
    """Return the median over the rounds."""
    return round(statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), 3)


def limits_of(rows: list[dict[str, Any]], steps: list[dict[str, Any]]) -> list[Limit]:
    """Return what must hold of the rows of both tables."""
    limits = [
        Limit(
            f"time of a step, {row['optimizer']}, {row['contender']}, {row['processes']} process(es)",
            row["wall_ratio"],
            TIME_LIMITS[row["contender"]],
        )
        for row in rows
        if row["contender"] in TIME_LIMITS
    ]
    return limits + [
        Limit(f"time of the 8-bit step, {row['threads']} thread(s)", row["wall_ratio"], CHUNKED_LIMIT)
        for row in steps
        if row["contender"] == "chunked"
    ]


def main() -> int:
    """Print the tables and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description="The engine and its optimizer step against plain torch's.")
    parser.add_argument("--micro-size", type=int, default=8, help="samples a process and step")
    parser.add_argument("--rounds", type=int, default=20, help=f"turns of {STEPS_A_TURN} steps that each takes")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # as a rank: to this file
    parser.add_argument("--part", choices=("engine", "step"), default="engine", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write is not None:
        run_part(arguments)
        return 0
    has_gpu = torch.cuda.is_available()
    sizes = ["--micro-size", str(arguments.micro_size), "--rounds", str(arguments.rounds)]
    rows = [row for n in ((1,) if has_gpu else (1, 2)) for row in in_processes("engine", n, 1, sizes)]
    facts = {
        "hardware": hardware(torch.device("cuda" if has_gpu else "cpu")),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in load_unet(BASE, torch.float32).parameters()),
        "latents": list(latent_shape(BASE)),
        "micro_size": arguments.micro_size,
        "rounds": arguments.rounds,
    }
    steps = [row for threads in (() if has_gpu else (1, 2)) for row in in_processes("step", 1, threads, sizes)]
    tables = [shown(rows, ", ".join(f"{key} {value}" for key, value in facts.items()))]
    if not has_gpu:
        tables.append(scaling_table(rows))
        tables.append(shown(steps, f"one 8-bit AdamW step on {NUM_ELEMENTS:,} parameters on the CPU"))
    limits = limits_of(rows, steps) if arguments.rounds >= MIN_JUDGED_ROUNDS else []
    return report("engine", tables, beside(rows, steps), {"rows": rows, "step": steps} | facts, limits)


def in_processes(part: str, num_ranks: int, num_threads: int, sizes: list[str]) -> list[dict[str, Any]]:
    """Return the rows that processes of their own measure, each of so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        if code := run_ranks(["-m", "benchmarks.engine", *sizes, "--part", part, "--write", str(file)], num_ranks):
            sys.exit(code)
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def run_part(arguments: argparse.Namespace) -> None:
    """Measure as one rank of a part; the first writes the rows."""
    rank = rank_from_environment()
    if arguments.part == "step":
        rows = compare_steps(arguments.rounds)
    else:
        keep_freed_memory()  # as our ranks do; all contenders alike
        join_process_group()
        configs = [OptimizerConfig.model_validate({"name": name, "lr": 1e-4}) for name in ("adamw", "adamw8bit")]
        rows = [row for config in configs for row in compare(config, rank, arguments.micro_size, arguments.rounds)]
        leave_process_group()
    if rank.is_first:
        arguments.write.write_text(json.dumps(rows), encoding="utf-8")


def shown(rows: list[dict[str, Any]], title: str) -> ReportTable:
    """Return the table of rows of the same keys."""
    cells = [[f"{value:.1e}" if key == "loss_difference" else str(value) for key, value in row.items()] for row in rows]
    return ReportTable(title, [key.replace("_", " ") for key in rows[0]], cells)


def gains(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return by optimizer and contender the ms of a step of 1 process, and how many times its samples/s 2 reach.

    A plain loop goes with DDP. Each process has the same micro batch, so that 2 see twice the samples.
    """

    def of(row: dict[str, Any]) -> tuple[str, str]:
        return row["optimizer"], row["contender"].replace("plain torch", "torch DDP")

    one = {of(row): row["wall_ms"] for row in rows if row["processes"] == 1}
    return {of(row): (one[of(row)], 2 * one[of(row)] / row["wall_ms"]) for row in rows if row["processes"] == 2}


def scaling_table(rows: list[dict[str, Any]]) -> ReportTable:
    """Return what a second process, on a core of its own, adds."""
    cells = [
        [optimizer, contender, f"{one_ms:.1f}", f"{gain:.2f}"]
        for (optimizer, contender), (one_ms, gain) in gains(rows).items()
    ]
    head = ("optimizer", "contender", "ms of 1 process", "times its samples/s with 2")
    return ReportTable("from 1 process to 2", head, cells)


def beside(rows: list[dict[str, Any]], steps: list[dict[str, Any]]) -> list[Beside]:
    """Return our ZeRO-2, a second process, and the 8-bit step, beside torch and bitsandbytes."""
    found = []
    of = {(row["optimizer"], row["processes"], row["contender"]): row for row in rows}
    for (optimizer, processes, contender), row in of.items():
        if contender == "ZeRO-2":
            name = "plain torch" if processes == 1 else "torch DDP"
            theirs = f"{name} {of[optimizer, processes, name]['wall_ms']} ms"
            what = f"a step, {optimizer}, ZeRO-2, {processes} process{'es' * (processes > 1)}"
            found.append(Beside(what, f"{row['wall_ms']} ms", theirs, row["wall_ratio"], "time"))
    gain = {key: value for key, (_, value) in gains(rows).items()}
    for (optimizer, contender), times in gain.items():
        if contender == "ZeRO-2":
            ddp = gain[optimizer, "torch DDP"]
            what = f"samples/s of 2 processes to 1, {optimizer}, ZeRO-2"
            found.append(Beside(what, f"{times:.2f} times", f"torch DDP {ddp:.2f} times", times / ddp, "rate"))
    for theirs_row, row in zip(steps[::2], steps[1::2], strict=True):
        what = f"8-bit step on the CPU, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        found.append(
            Beside(what, f"{row['wall_ms']} ms", f"bitsandbytes {theirs_row['wall_ms']} ms", row["wall_ratio"], "time")
        )
        ours_mb, theirs_mb = row["extra_bytes"] / 1e6, theirs_row["extra_bytes"] / 1e6
        memory = f"bitsandbytes {theirs_mb:.1f} MB"
        found.append(Beside(f"{what}: memory in passing", f"{ours_mb:.1f} MB", memory, ours_mb / theirs_mb, "memory"))
    return found


if __name__ == "__main__":
    sys.exit(main())
