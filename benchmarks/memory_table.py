"""What a GPU holds, beside what is published: `python -m benchmarks.memory_table` writes the tables of README.md.

Nothing is measured: ours is what `sonoshard memory` predicts for Stable Diffusion 1.5 in bf16. A minute on one core.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_table import Training, state_bytes, training
from benchmarks.written_table import markdown_table, write_into
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.memory import predicted_bytes
from launch.networks import empty_trained

PAGE = Path("README.md")
NUM_GPUS = (1, 2, 4, 8)
SOURCE = "[arXiv:1910.02054](https://arxiv.org/abs/1910.02054)"


@dataclass(frozen=True)
class Published:
    """What Adam with mixed precision takes: Rajbhandari et al. 2020 (arXiv:1910.02054), bytes a parameter on N GPUs."""

    stage: int
    whole: int
    divided: int

    @property
    def formula(self) -> str:
        """The bytes a parameter on N GPUs."""
        return " + ".join([*[str(self.whole)] * (self.whole > 0), f"{self.divided} / N"])


@dataclass(frozen=True)
class Row:
    """A setting of the engine. formula: its bytes a parameter on N GPUs, buckets left out."""

    name: str
    optimizer: OptimizerConfig
    zero: ZeroConfig
    formula: str


ROWS = (
    Published(1, 4, 12),
    Row("8-bit AdamW, ZeRO-1", OptimizerConfig(), ZeroConfig(stage=1), "4 + 6.03 / N"),
    Published(2, 2, 14),
    Row("32-bit AdamW, ZeRO-2", OptimizerConfig(name="adamw"), ZeroConfig(stage=2), "2 + 14 / N"),
    Row("**8-bit AdamW, ZeRO-2**", OptimizerConfig(), ZeroConfig(stage=2), "2 + 8.03 / N"),
    Row(
        "the same without an fp32 master: weights are rounded at random",
        OptimizerConfig(master="stochastic"),
        ZeroConfig(stage=2),
        "2 + 4.03 / N",
    ),
    Published(3, 0, 16),
    Row("8-bit AdamW, ZeRO-3", OptimizerConfig(), ZeroConfig(stage=3), "10.03 / N"),
)


def engine_table(of: Training) -> str:
    """Return GB on each GPU by setting and number of GPUs, without activations and averages, beside the formula."""
    unet = empty_trained(of.config.model, of.config.stages[0])
    num_parameters = sum(p.numel() for p in unet.parameters())
    rows = []
    for row in ROWS:
        if isinstance(row, Published):
            published = [f"{(row.whole + row.divided / n) * num_parameters / 1e9:.2f}" for n in NUM_GPUS]
            rows.append([f"published: Adam, ZeRO-{row.stage} ({SOURCE})", *published, row.formula])
            continue
        cells = [
            predicted_bytes(
                unet, row.optimizer, row.zero, dtype=torch.bfloat16, world_size=n, num_averages=0, on_gpu=True
            )
            for n in NUM_GPUS
        ]
        rows.append([row.name, *(f"{sum(kinds.values()) / 1e9:.2f}" for kinds in cells), row.formula])
    return markdown_table(["GB on each GPU", *map(str, NUM_GPUS), "bytes a parameter"], rows)


def training_table(trainings: Mapping[str, Training]) -> str:
    """Return GB of whole trainings at 512 pixels on one GPU beside those that diffusers' README publishes.

    Ours holds an average of the weights too.
    """
    plain, offloaded = ZeroConfig(stage=2), ZeroConfig(stage=2, offload="optimizer")
    cases = (
        ("the whole UNet, checkpointing", "24, mixed precision", "diffusion", plain, 1, True),
        ("ControlNet, 4 images a step", "38", "controlnet", plain, 4, False),
        ("ControlNet, 4 micro batches of 1 image a step", "20", "controlnet", plain, 1, False),
        ("ControlNet, 1 image, checkpointing, 8-bit", "16; 12 with xformers", "controlnet", plain, 1, True),
        ("ControlNet, the same with ZeRO-2, offloaded", "8, of a 32-bit Adam", "controlnet", offloaded, 1, True),
    )
    rows = []
    for name, published, kind, zero, num_images, is_checkpointed in cases:
        of = trainings[kind]
        state = state_bytes(of.config, zero, 1)[0] + of.frozen_bytes
        rows.append([name, published, f"{(state + num_images * of.image_bytes[is_checkpointed]) / 1e9:.1f}"])
    return markdown_table(["GB of a training at 512 pixels on one GPU", "published", "ours, predicted"], rows)


def main() -> None:
    """Write the tables into the page."""
    with tempfile.TemporaryDirectory() as temporary:
        trainings = {kind: training(kind, Path(temporary)) for kind in ("diffusion", "controlnet")}
        tables = {"engine table": engine_table(trainings["diffusion"]), "training table": training_table(trainings)}
    write_into(PAGE, tables)
    print(f"wrote the tables of {PAGE}")


if __name__ == "__main__":
    main()
