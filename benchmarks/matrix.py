"""Train the built-in model with every optimizer, ZeRO stage and precision, and compare what each has learnt.

`python -m benchmarks.matrix [--steps 200] [--cells SUBSTRING ...] [--nproc 1] [--folder FOLDER]` prints a table and one
JSON line, and exits with 1 if a cell with 8-bit moments ends more than 2 % above 32-bit AdamW of the same precision.
Names are as adamw8bit-zero2-bf16-stochastic or lion8bit-zero3-fp32-offloaded; a whole one is that cell alone.
Every cell starts from the same weights, sees the same samples with the same noise (matrix.yaml), and is measured
on the same held-out ones. In a FOLDER that is given, what an earlier call has finished is not trained again. Columns:

    loss       of the averaged weights on held-out patients, at the last step
    to adamw   that, to the cell of 32-bit AdamW of the same precision, at ZeRO stage 2 (stages differ by rounding only)
    to fp32    that, to the cell of 32-bit AdamW in fp32
    s/step     the median, in wall time
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.activations import hardware
from benchmarks.report import Beside, Limit, ReportTable, report
from distributed.config import OptimizerName, Precision
from distributed.rank import join_process_group, leave_process_group, rank_from_environment
from distributed.stop_request import StopRequest
from launch.config import RunConfig, load_config
from launch.prepare import encode_databases, prepare_databases
from launch.quiet import quiet_libraries
from launch.spawn import run_ranks
from launch.tracking import tensorboard_folder
from launch.train import train

CONFIG = Path(__file__).parent / "matrix.yaml"
OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "adamw8bit", "lion8bit", "ademamix8bit")
# What an 8-bit cell's loss may be above that of 32-bit AdamW, relative.
MAX_EXCESS = 0.02
# Lion's authors advise a learning rate 3 to 10 times smaller than AdamW's, as every element of its update is 1 or -1,
# and a weight decay as much larger (arXiv:2302.06675, section 5). 5 lies between them. Its momentum of 0.99 remembers
# 100 steps, half of the 200 here: with it Lion ends 3.6 to 8 % above AdamW at factors of 1 to 10, and as much with
# 32-bit moments; with 0.95, 1 %. That was found with run seed 1; what is measured here has the config's seed 0.
LION_FACTOR = 5
LION_BETAS = "[0.9, 0.95]"
SETTINGS = (
    "optimizer.lr_schedule=cosine",
    "checkpoint={save_every_steps: null, keep_last: 1}",
    "validation={every_steps: null, num_samples: 64}",
    # A stage draws at its start and its end: as little as it can.
    "preview={every_steps: null, prompts: [''], sampling: {steps: 1}}",
)


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    optimizer: OptimizerName
    stage: int = 2
    precision: Precision = "fp32"
    is_stochastic: bool = False
    is_offloaded: bool = False

    @property
    def name(self) -> str:
        """Names its folder, and is what --cells looks in."""
        name = f"{self.optimizer}-zero{self.stage}-{self.precision}"
        return name + "-stochastic" * self.is_stochastic + "-offloaded" * self.is_offloaded

    @property
    def reference(self) -> "Cell":
        """32-bit AdamW of the same precision."""
        return Cell("adamw", precision=self.precision)

    def config(self, folder: Path, steps: int, num_ranks: int) -> RunConfig:
        """Return its run, on the shards in `folder`."""
        plain = load_config(CONFIG)
        is_lion = self.optimizer == "lion8bit"
        factor = LION_FACTOR if is_lion else 1
        return load_config(
            CONFIG,
            [
                f"run={folder}/{steps}-steps-{num_ranks}-ranks/{self.name}",
                f"shards={folder}/shards",
                f"stages.0.steps={steps}",
                f"optimizer.name={self.optimizer}",
                f"optimizer.lr={plain.optimizer.lr / factor}",
                f"optimizer.weight_decay={plain.optimizer.weight_decay * factor}",
                f"optimizer.master={'stochastic' if self.is_stochastic else 'fp32'}",
                f"zero.stage={self.stage}",
                f"zero.offload={'optimizer' if self.is_offloaded else 'none'}",
                f"precision={self.precision}",
                *([f"optimizer.betas={LION_BETAS}"] if is_lion else []),
                *SETTINGS,
            ],
        )


@dataclass(frozen=True)
class Result:
    """What became of a cell."""

    loss: float
    step_s: float


def matrix() -> Iterator[Cell]:
    """Yield every cell, the references first."""
    references = [Cell("adamw"), Cell("adamw", precision="bf16")]
    yield from references
    for optimizer in OPTIMIZERS:
        for stage in (0, 1, 2, 3):
            cells = [
                Cell(optimizer, stage),
                Cell(optimizer, stage, "bf16"),
                Cell(optimizer, stage, "bf16", is_stochastic=True),
            ]
            if stage > 0:  # at 0 there is nothing to offload
                cells.append(Cell(optimizer, stage, is_offloaded=True))
                cells.append(Cell(optimizer, stage, "bf16", is_offloaded=True))
            yield from (cell for cell in cells if cell not in references)


def chosen(substrings: Sequence[str]) -> list[Cell]:
    """Return the cells whose name contains any of `substrings` (all, where there are none), and their references.

    A whole name is that cell alone.
    """
    names = {cell.name for cell in matrix()}
    parts = [part for part in substrings if part not in names]
    named = [
        cell
        for cell in matrix()
        if not substrings or cell.name in substrings or any(part in cell.name for part in parts)
    ]
    needed = {*named, *(cell.reference for cell in named), *([Cell("adamw")] if named else [])}
    return [cell for cell in matrix() if cell in needed]


def main() -> int:
    """Print the table and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description="The built-in model trained by every optimizer, stage and precision.")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each cell (default: 200)")
    parser.add_argument(
        "--cells", nargs="*", default=[], metavar="NAME", help="only these, or those whose name has this in it"
    )
    parser.add_argument("--nproc", type=int, default=1, help="ranks (default: 1)")
    parser.add_argument("--folder", type=Path, help="keeps shards and runs, and goes on with them (default: none)")
    parser.add_argument("--is-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cells = chosen(options.cells)
    if not cells:
        parser.error(f"no cell has {' or '.join(options.cells)} in its name, such as {Cell('adamw8bit').name}")
    if options.is_rank:
        train_cells(cells, options.folder, options.steps)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        prepare_shards(folder)
        arguments = ["--is-rank", "--folder", str(folder), "--steps", str(options.steps), "--cells", *options.cells]
        code = run_ranks(["-m", "benchmarks.matrix", *arguments], options.nproc)
        if code != 0:
            return code
        results = {cell: read_result(cell.config(folder, options.steps, options.nproc)) for cell in cells}
    return show(results, options.steps, options.nproc)


def prepare_shards(folder: Path) -> None:
    """Simulate and encode the demo's database into `folder`, where that was not done."""
    config = load_config(CONFIG, [f"run={folder}"])
    print(prepare_databases(config))
    print(encode_databases(config))


def train_cells(cells: Sequence[Cell], folder: Path, steps: int) -> None:
    """Train `cells` one after another, as one rank."""
    rank = rank_from_environment()
    join_process_group()
    for number, cell in enumerate(cells):
        if rank.is_first:
            print(f"{cell.name}, {number + 1} of {len(cells)}", flush=True)
        train(cell.config(folder, steps, rank.world_size), rank, StopRequest())
    leave_process_group()


def read_result(config: RunConfig) -> Result:
    """Return what a finished run recorded."""
    events = EventAccumulator(str(tensorboard_folder(config)), size_guidance={"scalars": 0})
    events.Reload()
    rate = statistics.median(event.value for event in events.Scalars("throughput/samples_per_s"))
    return Result(events.Scalars("validation/loss")[-1].value, config.batch.global_size / rate)


def show(results: dict[Cell, Result], steps: int, num_ranks: int) -> int:
    """Print the table and the JSON line; return 1 if a cell with 8-bit moments ended too far above its reference."""
    facts = {
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "ranks": num_ranks,
        "steps": steps,
    }
    columns = ("cell", "loss", "to adamw", "to fp32", "s/step")
    rows, cells, beside, limits = {}, [], [], []
    for cell, result in results.items():
        to_adamw, to_fp32 = (result.loss / results[other].loss for other in (cell.reference, Cell("adamw")))
        cells.append([cell.name, f"{result.loss:.5f}", f"{to_adamw:.4f}", f"{to_fp32:.4f}", f"{result.step_s:.3f}"])
        rows[cell.name] = {**vars(result), "to_adamw": to_adamw, "to_fp32": to_fp32}
        if cell.optimizer.endswith("8bit"):
            theirs = f"32-bit AdamW {results[cell.reference].loss:.5f}"
            what = f"loss after {steps} steps, {cell.name}"
            beside.append(Beside(what, f"{result.loss:.5f}", theirs, to_adamw, "loss"))
            limits.append(Limit(what, to_adamw, 1 + MAX_EXCESS))
    title = ", ".join(f"{key} {value}" for key, value in facts.items())
    return report("matrix", [ReportTable(title, columns, cells)], beside, {"rows": rows} | facts, limits)


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main())
