"""Measure training on one GPU: images/s and peak memory, ours beside a plain PyTorch loop of the same settings.

`python -m benchmarks.gpu [--cells PATTERN ...] [--folder FOLDER]` prints a table and one JSON line. Stable Diffusion
1.5's UNet at 512 pixels, or its ControlNet beside that UNet, of random weights in bf16: {adamw, adamw8bit} x ZeRO {0,
2, 3} x with and without checkpointing x compiled or not. The plain loop has float32 weights under torch's autocast to
bf16, clips, and steps with torch's fused AdamW or bitsandbytes' AdamW8bit. Each cell is a process of its own; in a
FOLDER that is given, one that is done is not done again. Latents, noise and text are drawn once: neither reads data.
It runs with torch 2.11 to 2.13. `--model tiny` takes the built-in model, on a CPU too, to try it. Columns:

    images/s   of the median step after some that are not counted (they compile); `out of memory` where it does not fit
    peak GB    the most that torch's allocator had given out, from the start of the process; on a CPU, resident memory
    ratio      to the plain loop of the same network, optimizer, checkpointing and compilation
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.activations import hardware
from benchmarks.plain_loop import OfStep, engine_step, plain_step
from benchmarks.report import Beside, ReportTable, report
from benchmarks.stable_diffusion_config import write_stable_diffusion_config
from distributed.engine import Engine
from distributed.placement import training_device
from distributed.rank import Rank, join_process_group, leave_process_group, rank_from_environment
from launch.config import RunConfig
from launch.failure import end_at_once
from launch.networks import Networks
from launch.quiet import quiet_libraries
from models.base import latent_shape, noise_schedule, resolution_of, text_shape
from models.controlnet import empty_controlnet
from models.objective import ObjectiveConfig, denoising_loss
from models.stable_diffusion import apply_settings, empty_unet

Kind = Literal["diffusion", "controlnet"]
Way = Literal["plain", "zero0", "zero2", "zero3"]
OptimizerOfCell = Literal["adamw", "adamw8bit"]
KINDS: tuple[Kind, ...] = ("diffusion", "controlnet")
WAYS: tuple[Way, ...] = ("plain", "zero0", "zero2", "zero3")
OPTIMIZERS: tuple[OptimizerOfCell, ...] = ("adamw", "adamw8bit")


@dataclass(frozen=True)
class Cell:
    """One way to train. way: the plain loop, or ours with a ZeRO stage."""

    kind: Kind
    way: Way
    optimizer: OptimizerOfCell
    has_checkpointing: bool = False
    is_compiled: bool = False

    @property
    def name(self) -> str:
        """Names it, and is what --cells looks at."""
        return (
            f"{self.kind}-{self.way}-{self.optimizer}"
            + "-checkpointing" * self.has_checkpointing
            + "-compiled" * self.is_compiled
        )

    @property
    def reference(self) -> "Cell":
        """The plain loop of the same settings."""
        return replace(self, way="plain")

    def config(self, folder: Path, model: str, pixels: int | None, micro_size: int) -> RunConfig:
        """Return its run. folder: gets the configs of Stable Diffusion 1.5, of which no weights are needed."""
        base = "tiny" if model == "tiny" else str(write_stable_diffusion_config(folder / "base"))
        settings = {"gradient_checkpointing": self.has_checkpointing, "compile": self.is_compiled}
        return RunConfig.model_validate(
            {
                "run": folder,
                "precision": "bf16",
                "model": {"base": base, "resolution": pixels, **settings},
                "databases": {"none": {"kind": "simulated", "count": 1}},
                "optimizer": {"name": self.optimizer},
                "zero": {"stage": 0 if self.way == "plain" else int(self.way[-1])},
                "batch": {"global_size": micro_size, "micro_size": micro_size},
                "ema": {"lengths": []},
                "stages": [{"name": "one", "kind": self.kind, "databases": ["none"], "steps": 1}],
            }
        )


def cells(patterns: Sequence[str] = ()) -> list[Cell]:
    """Return the cells whose names match any of `patterns` (all, where there are none), and their references."""
    all_cells = [
        Cell(kind, way, optimizer, has_checkpointing, is_compiled)
        for kind, is_compiled, optimizer, has_checkpointing, way in product(
            KINDS, (False, True), OPTIMIZERS, (False, True), WAYS
        )
    ]
    named = [cell for cell in all_cells if not patterns or any(fnmatch(cell.name, pattern) for pattern in patterns)]
    needed = {*named, *(cell.reference for cell in named)}
    return [cell for cell in all_cells if cell in needed]


def random_network(empty: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a network of the meta device with small random weights."""
    network = empty.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    return network.train()


def make_networks(cell: Cell, config: RunConfig, device: torch.device) -> Networks:
    """Return the network that is trained, in bf16 or for the plain loop in float32, and a frozen UNet in bf16."""
    dtype = torch.float32 if cell.way == "plain" else torch.bfloat16
    if cell.kind == "diffusion":
        trained, frozen = random_network(empty_unet(config.model), dtype, device), None
    else:
        trained = random_network(empty_controlnet(config.model), dtype, device)
        frozen = random_network(empty_unet(config.model), torch.bfloat16, device).requires_grad_(False)
        apply_settings(frozen, config.model)
    apply_settings(trained, config.model)
    return Networks(trained, frozen)


class Task:
    """The loss of one micro batch, drawn by seed: noisy latents, text and, for a ControlNet, hints."""

    def __init__(self, cell: Cell, config: RunConfig, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        schedule, count = noise_schedule(config.model), config.batch.micro_size
        self._schedule = replace(schedule, alpha_bar_T=schedule.alpha_bar_T.to(device))
        pixels = resolution_of(config.model)
        shapes = [latent_shape(config.model), latent_shape(config.model), text_shape(config.model)]
        latents_BCHW, noise_BCHW, text_BLD = (
            torch.randn(count, *shape, generator=generator).to(device) for shape in shapes
        )
        timesteps_B = torch.randint(schedule.num_timesteps, (count,), generator=generator).to(device)
        hint = (
            () if cell.kind == "diffusion" else (torch.rand(count, 3, pixels, pixels, generator=generator).to(device),)
        )
        self._batch = (latents_BCHW, noise_BCHW, timesteps_B, text_BLD, *hint)

    def loss(self, denoiser: nn.Module, _step: int) -> Tensor:
        """Return the mean loss, of the same micro batch at every step."""
        return denoising_loss(denoiser, self._schedule, ObjectiveConfig(), *self._batch).mean()


def training_step(cell: Cell, config: RunConfig, networks: Networks, task: Task, rank: Rank) -> OfStep:
    """Return a step of one way to train."""
    if cell.way == "plain":
        loss = partial(task.loss, networks.denoiser(networks.trained))
        return plain_step(networks.trained, config.optimizer, loss, is_bf16=True, adamw="fused")
    engine = Engine(
        networks.trained,
        config.optimizer,
        config.zero,
        rank,
        precision=config.precision,
        micro_size=config.batch.micro_size,
        accumulation_steps=1,
    )
    return engine_step(engine, config.optimizer, partial(task.loss, networks.denoiser(engine.network)))


def measure(cell: Cell, config: RunConfig, num_steps: int) -> dict[str, Any]:
    """Return images/s and peak bytes of this process, or that it is out of memory.

    Raises: RuntimeError if the loss is not finite.
    """
    rank = rank_from_environment()
    join_process_group()
    device = training_device(rank)
    try:
        seconds = list(step_seconds(cell, config, rank, device, num_steps))
    except torch.OutOfMemoryError:
        return {"is_out_of_memory": True}
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated()
    leave_process_group()
    return {"images_per_s": config.batch.micro_size / statistics.median(seconds), "peak_bytes": peak_bytes}


def step_seconds(cell: Cell, config: RunConfig, rank: Rank, device: torch.device, num_steps: int) -> Iterator[float]:
    """Yield the seconds of each step that counts, and make sure of its loss."""
    networks, task = make_networks(cell, config, device), Task(cell, config, device)
    step = training_step(cell, config, networks, task, rank)
    for number in range(2 + num_steps):
        began_s = time.perf_counter()
        loss = float(step(number))  # it waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize()
        if not loss < float("inf"):
            raise RuntimeError(f"{cell.name}: the loss of step {number + 1} is {loss}")
        if number >= 2:
            yield time.perf_counter() - began_s


def measure_in_process(cell: Cell, file: Path, sizes: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a cell, measured by a process of its own unless its file has them."""
    if not file.exists():
        command = [sys.executable, "-m", "benchmarks.gpu", *sizes, "--cells", cell.name, "--write", str(file)]
        done = subprocess.run(command, check=False)
        if done.returncode != 0:
            return {"failed": done.returncode}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def table(found: dict[Cell, dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table."""
    rows = []
    for cell, figures in found.items():
        words = [cell.kind, cell.optimizer, "on" if cell.has_checkpointing else "off"]
        words += ["yes" if cell.is_compiled else "no", cell.way]
        if "images_per_s" not in figures:
            rows.append([*words, "out of memory" if "is_out_of_memory" in figures else "failed", "", "", ""])
            continue
        reference = found[cell.reference]
        ratios = [
            f"{figures[key] / reference[key]:.2f}" if key in reference else "" for key in ("images_per_s", "peak_bytes")
        ]
        rows.append(
            [*words, f"{figures['images_per_s']:.2f}", ratios[0], f"{figures['peak_bytes'] / 1e9:.2f}", ratios[1]]
        )
    return rows


def beside(found: dict[Cell, dict[str, Any]]) -> list[Beside]:
    """Return our cells beside the plain loop of the same settings, where both fit."""
    rows = []
    for cell, ours in found.items():
        theirs = found[cell.reference]
        if cell.way == "plain" or "images_per_s" not in ours or "images_per_s" not in theirs:
            continue
        plain = f"plain torch {theirs['images_per_s']:.2f} images/s"
        ratio = ours["images_per_s"] / theirs["images_per_s"]
        rows.append(Beside(cell.name, f"{ours['images_per_s']:.2f} images/s", plain, ratio, "rate"))
        ours_gb, theirs_gb = ours["peak_bytes"] / 1e9, theirs["peak_bytes"] / 1e9
        plain = f"plain torch {theirs_gb:.2f} GB"
        rows.append(Beside(f"{cell.name}, peak", f"{ours_gb:.2f} GB", plain, ours_gb / theirs_gb, "memory"))
    return rows


def main() -> int:
    """Print the table and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description="Training on one GPU beside a plain PyTorch loop.")
    parser.add_argument("--model", choices=("sd15", "tiny"), default="sd15", help="architecture (default: sd15)")
    parser.add_argument("--pixels", type=int, help="height and width of the images; default: 512, of tiny 128")
    parser.add_argument("--micro-size", type=int, default=4, help="images a step (default: 4)")
    parser.add_argument("--steps", type=int, default=10, help="steps that count (default: 10)")
    parser.add_argument("--cells", nargs="*", default=[], metavar="PATTERN", help="only these, such as 'controlnet-*'")
    parser.add_argument("--folder", type=Path, help="keeps what was measured, and goes on with it (default: none)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # measure one cell in this process
    options = parser.parse_args()
    chosen = cells(options.cells)
    if not chosen:
        parser.error(
            f"no cell matches {' or '.join(options.cells)}, such as {Cell('diffusion', 'zero2', 'adamw').name}"
        )
    if options.write:
        write_cell(next(cell for cell in chosen if [cell.name] == options.cells), options)
    if options.model == "sd15" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --model tiny tries it without one")
    pixels = options.pixels or (128 if options.model == "tiny" else 512)
    sizes = {"model": options.model, "pixels": pixels, "micro-size": options.micro_size, "steps": options.steps}
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as temporary:
        # What was measured of other sizes or with another torch lies elsewhere.
        kept = (options.folder or Path(temporary)) / "-".join([*map(str, sizes.values()), torch.__version__])
        kept.mkdir(parents=True, exist_ok=True)
        found = {cell: measure_in_process(cell, kept / f"{cell.name}.json", arguments) for cell in chosen}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    title = f"{hardware(device)}, torch {torch.__version__}, " + ", ".join(f"{k} {v}" for k, v in sizes.items())
    head = ("network", "optimizer", "checkpointing", "compiled", "way", "images/s", "ratio", "peak GB", "ratio")
    figures = {cell.name: result for cell, result in found.items()}
    report("gpu", [ReportTable(title, head, table(found))], beside(found), {"cells": figures} | sizes)
    return 1 if any("failed" in result for result in found.values()) else 0


def write_cell(cell: Cell, options: argparse.Namespace) -> None:
    """Measure a cell, write its figures, and end this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        config = cell.config(Path(folder), options.model, options.pixels, options.micro_size)
        figures = measure(cell, config, options.steps)
    options.write.write_text(json.dumps(figures), encoding="utf-8")
    # Not by the interpreter's own end, where torch's and gloo's threads are taken down in any order.
    end_at_once(0)


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main())
