"""Which micro batch fits which GPU: `python -m benchmarks.gpu_table` writes the tables of docs/which-gpu.md.

Nothing is measured: it is what `sonoshard memory` predicts (within 1 % of what was measured, see docs/engine.md) for
Stable Diffusion 1.5 at 512 pixels as configs/shared/sd15.yaml trains it, in bf16. A minute on one core.
"""

import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch

from benchmarks.stable_diffusion_config import write_stable_diffusion_config
from benchmarks.written_table import markdown_table, write_into
from distributed.config import ZeroConfig
from distributed.memory import predicted_bytes
from launch.config import RunConfig, load_config
from launch.memory import predict
from launch.networks import empty_trained

PAGE = Path("docs/which-gpu.md")
KINDS: dict[str, str] = {"diffusion": "Stable Diffusion 1.5", "controlnet": "ControlNet"}
GPU_GB = (11, 16, 24, 40, 80)
NUM_GPUS = (1, 2, 4, 8, 16)
STAGES: tuple[Literal[0, 2, 3], ...] = (0, 2, 3)
# What CUDA itself takes, and the share of what is left that the allocator loses to fragments.
CUDA_BYTES = 500_000_000
FRAGMENTS = 0.1
NOTHING_FITS = "\N{EN DASH}"


@dataclass(frozen=True)
class Training:
    """One kind of stage. image_bytes: activations of one image, by whether they are checkpointed."""

    config: RunConfig
    image_bytes: dict[bool, int]

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the UNet that stands frozen beside a ControlNet, whole on each rank."""
        stage = self.config.stages[0]
        if not stage.has_hints:
            return 0
        whole_unet = empty_trained(self.config.model, stage.model_copy(update={"kind": "diffusion"}))
        return 2 * sum(p.numel() for p in whole_unet.parameters())


def configuration(kind: str, folder: Path, *, checkpointing: bool = True) -> RunConfig:
    """Return a run of one stage as configs/shared/sd15.yaml sets it, with micro batches of one image.

    folder: gets the configs of Stable Diffusion 1.5, of which no weights are needed.
    """
    base = write_stable_diffusion_config(folder / "base")
    config = folder / "gpu_table.yaml"
    config.write_text(
        f"extends: {Path('configs/shared/sd15.yaml').absolute()}\n"
        f"run: {folder}\n"
        f"precision: bf16\n"
        f"model: {{base: {base}, gradient_checkpointing: {str(checkpointing).lower()}}}\n"
        "databases: {none: {kind: simulated, count: 1}}\n"
        "batch: {micro_size: 1}\n"
        f"stages: [{{name: {kind}, kind: {kind}, databases: [none], steps: 1}}]\n",
        encoding="utf-8",
    )
    return load_config(config)


def training(kind: str, folder: Path) -> Training:
    """Return one kind of stage with its activations; two predictions, some 15 s."""
    image_bytes = {
        is_on: predict(configuration(kind, folder, checkpointing=is_on), 1, torch.bfloat16, on_gpu=True)["activations"]
        for is_on in (False, True)
    }
    return Training(configuration(kind, folder), image_bytes)


def state_bytes(config: RunConfig, zero: ZeroConfig, num_gpus: int) -> tuple[int, int]:
    """Return the bytes of all but activations and the frozen UNet on one rank: on its GPU, and in host memory.

    An optimizer step is of several micro batches.
    """
    kinds = state_kinds(config, zero, num_gpus)
    on_host = sum(count for kind, count in kinds.items() if kind.endswith(", host"))
    return sum(kinds.values()) - on_host, on_host


def state_kinds(config: RunConfig, zero: ZeroConfig, num_gpus: int) -> dict[str, int]:
    """Return the same by kind, as `predicted_bytes` names them."""
    stage = config.stages[0]
    return predicted_bytes(
        empty_trained(config.model, stage),
        config.stage_optimizer(stage),
        zero,
        dtype=torch.bfloat16,
        world_size=num_gpus,
        num_averages=len(config.ema.lengths),
        on_gpu=True,
        accumulation_steps=2,
    )


def largest_micro_size(gpu_gb: float, taken_bytes: int, image_bytes: int) -> int:
    """Return how many images fit beside `taken_bytes`, which is in bytes: activations grow evenly with each."""
    room = (1 - FRAGMENTS) * (gpu_gb * 1e9 - CUDA_BYTES) - taken_bytes
    return max(0, int(room // image_bytes))


def row(kind_of_training: Training, num_gpus: int) -> dict[int, list[str]]:
    """Return for each GPU's GB the cells of one number of GPUs: a ZeRO stage each."""
    cells: dict[int, list[str]] = {gpu_gb: [] for gpu_gb in GPU_GB}
    frozen = kind_of_training.frozen_bytes
    for stage in STAGES:
        taken = state_bytes(kind_of_training.config, ZeroConfig(stage=stage), num_gpus)[0] + frozen
        for gpu_gb in GPU_GB:
            cells[gpu_gb].append(_cell(gpu_gb, taken, kind_of_training.image_bytes))
    taken = state_bytes(kind_of_training.config, ZeroConfig(stage=2, offload="optimizer"), num_gpus)[0] + frozen
    for gpu_gb in GPU_GB:
        cells[gpu_gb].append(_cell(gpu_gb, taken, kind_of_training.image_bytes))
    return cells


def _cell(gpu_gb: int, taken_bytes: int, image_bytes: dict[bool, int]) -> str:
    plain, checkpointed = (largest_micro_size(gpu_gb, taken_bytes, image_bytes[is_on]) for is_on in (False, True))
    if checkpointed == 0:
        return NOTHING_FITS
    return f"{plain or NOTHING_FITS} / {checkpointed}"


def fitting_table(of: Training) -> str:
    """Return a table: GPUs down, ZeRO stages across, each cell the micro batch without and with checkpointing."""
    by_number = {num_gpus: row(of, num_gpus) for num_gpus in NUM_GPUS}
    head = ["GPU", "GPUs", *(f"ZeRO-{stage}" for stage in STAGES), "ZeRO-2, offloaded"]
    rows = [
        [f"{gpu_gb} GB" if num_gpus == NUM_GPUS[0] else "", str(num_gpus), *by_number[num_gpus][gpu_gb]]
        for gpu_gb, num_gpus in product(GPU_GB, NUM_GPUS)
    ]
    return markdown_table(head, rows)


def parts_table(trainings: dict[str, Training]) -> str:
    """Return what the cells are made of: state by stage and number of GPUs, and an image's activations, in GB."""
    rows = []
    for kind, of in trainings.items():
        for zero in (*(ZeroConfig(stage=stage) for stage in STAGES), ZeroConfig(stage=2, offload="optimizer")):
            by_number = [state_bytes(of.config, zero, num_gpus) for num_gpus in NUM_GPUS]
            name = f"{KINDS[kind]}, ZeRO-{zero.stage}" + (", offloaded" if zero.offload == "optimizer" else "")
            on_gpu = [f"{(gpu + of.frozen_bytes) / 1e9:.2f}" for gpu, _ in by_number]
            on_host = [f" ({host / 1e9:.2f})" if host else "" for _, host in by_number]
            rows.append([name, *(gpu + host for gpu, host in zip(on_gpu, on_host, strict=True))])
        rows.append(
            [
                f"{KINDS[kind]}, each image of the micro batch",
                f"{of.image_bytes[False] / 1e9:.3f} / {of.image_bytes[True] / 1e9:.3f}",
                *[""] * (len(NUM_GPUS) - 1),
            ]
        )
    return markdown_table(["GB on each GPU (in host memory)", *(str(number) for number in NUM_GPUS)], rows)


def main() -> None:
    """Write the tables into the page."""
    with tempfile.TemporaryDirectory() as temporary:
        trainings = {kind: training(kind, Path(temporary)) for kind in KINDS}
        contents = {f"{kind} table": fitting_table(of) for kind, of in trainings.items()}
        write_into(PAGE, {**contents, "parts table": parts_table(trainings)})
    print(f"wrote the tables of {PAGE}")


if __name__ == "__main__":
    main()
