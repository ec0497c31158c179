"""Where the forgetting matrix is told: RUN/forgetting.json, a picture beside it and in TensorBoard, the terminal."""

import textwrap
from collections.abc import Sequence

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from data.durable import replacing
from launch.config import RunConfig
from launch.forgetting import Average, ForgettingMatrix, MatrixRow, read_matrix
from launch.heat_map import heat_map
from launch.run_steps import steps_taken
from launch.tracking import tensorboard_folder

MATRIX_FILE, PICTURE_FILE = "forgetting.json", "forgetting.png"
# Of a cell, `0.1234* -10.9%`, with the space between two; and what a stage's name needs.
COLUMN_WIDTH, NAME_WIDTH = 16, 15
NAMED_DATABASES = 4


def write_matrix(config: RunConfig) -> None:
    """Write the matrix of the stages that are finished, and its picture where there is more than one number to show.

    Does nothing if that is what lies there already: may be called at any time, by one process at a time.
    """
    matrix = read_matrix(config)
    path, text = config.run / MATRIX_FILE, matrix.to_json()
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if _is_curriculum(config, matrix):
        image = heat_map(matrix)
        with replacing(config.run / PICTURE_FILE) as temporary:
            Image.fromarray(image).save(temporary, format="PNG")
        finished = {row.name for row in matrix.rows}
        at = sum(steps_taken(config, stage) for stage in config.stages if stage.name in finished)
        with SummaryWriter(str(tensorboard_folder(config))) as writer:
            writer.add_image("forgetting", image, at, dataformats="HWC")
    with replacing(path) as temporary:  # last: it says that the picture is there too
        temporary.write_text(text, encoding="utf-8")


def tell_matrix(config: RunConfig) -> None:
    """Write the matrix and, where there is more than one number to show, print it."""
    write_matrix(config)
    matrix = read_matrix(config)
    if _is_curriculum(config, matrix):
        print_matrix(matrix)


def _is_curriculum(config: RunConfig, matrix: ForgettingMatrix) -> bool:
    """Return whether a run has stages or databases to compare, and losses of them."""
    return bool(matrix.databases) and (len(config.stages) > 1 or len(matrix.databases) > 1)


def print_matrix(matrix: ForgettingMatrix, console: Console | None = None) -> None:
    """Print the matrix, as many databases beside one another as there is room for, and what its chains come to."""
    console = console or Console()
    console.print("\nValidation loss after each stage\n")
    at_once = max(1, (console.width - NAME_WIDTH) // COLUMN_WIDTH)
    for first in range(0, len(matrix.databases), at_once):
        console.print(_table(matrix, matrix.databases[first : first + at_once]))
        console.print()
    lines = ["* trained on in this stage, ~ replayed; %: change against the base model"]
    if any(chain.forgetting for chain in matrix.chains):
        lines.append("forgetting: above the lowest loss since it was first trained on; less is better")
    if any(chain.forward_transfer for chain in matrix.chains):
        lines.append("forward transfer: below the base model before it was trained on; more is better")
    for chain in matrix.chains:
        way = " > ".join(chain.stages)
        known = {"average forgetting": chain.forgetting, "forward transfer": chain.forward_transfer}
        lines += [f"{way}: {name} {_told(average)}" for name, average in known.items() if average]
    for line in lines:
        console.print(textwrap.fill(line, console.width, subsequent_indent="  "), highlight=False, markup=False)


def _table(matrix: ForgettingMatrix, databases: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for name in databases:
        table.add_column("\n".join(textwrap.wrap(name, COLUMN_WIDTH - 2)), no_wrap=True)
    for row in matrix.rows:
        table.add_row("\n ".join([row.name, *matrix.notes(row)]), *(_cell(matrix, row, name) for name in databases))
    return table


def _cell(matrix: ForgettingMatrix, row: MatrixRow, database: str) -> str:
    if database not in row.losses:
        return "-"
    mark = "*" if database in row.databases else "~" if database in row.replay else " "
    change = matrix.change(row, database)
    return f"{row.losses[database]:.4f}{mark}" + ("" if change is None else f" {100 * change:+.1f}%")


def _told(average: Average) -> str:
    names = list(average.databases)
    more = len(names) - NAMED_DATABASES
    listed = ", ".join(names[:NAMED_DATABASES]) + (f" and {more} more" if more > 0 else "")
    return f"{100 * average.relative:+.1f}% ({average.absolute:+.4f}) on {listed}"
