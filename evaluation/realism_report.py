"""The realism of every stage as a table in the terminal."""

import textwrap
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from evaluation.realism import Realism
from evaluation.stage_realism import RealismMatrix, RealismRow
from launch.stage_config import BASE

# Of a cell, `12.34* -0.0123`, with the space between two; and what a stage's name needs.
COLUMN_WIDTH, NAME_WIDTH = 16, 16
REAL = "real"
LEGEND = (
    "distance: of the statistics' distributions to those of held-out real images, mean of"
    " {num}, in standard deviations; behind it KID of the same statistics; less is better",
    "real: one half of the held-out patients against the other; * trained on, ~ replayed in this stage",
    "compare stages within a column: blur by the VAE, gain and dynamic range count too",
)


def print_realism(matrix: RealismMatrix, console: Console | None = None) -> None:
    """Print distance and KID of every stage and database, as many databases beside one another as there is room for."""
    console = console or Console()
    console.print(f"\nGenerated against real images, {matrix.num_images} of each stage and database\n")
    at_once = max(1, (console.width - NAME_WIDTH) // COLUMN_WIDTH)
    for first in range(0, len(matrix.databases), at_once):
        console.print(_table(matrix, matrix.databases[first : first + at_once]))
        console.print()
    for line in LEGEND:
        text = line.format(num=len(matrix.statistics))
        console.print(textwrap.fill(text, console.width, subsequent_indent="  "), highlight=False, markup=False)


def _table(matrix: RealismMatrix, databases: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for name in databases:
        table.add_column("\n".join(textwrap.wrap(name, COLUMN_WIDTH - 2)), no_wrap=True)
    table.add_row(REAL, *(_cell(matrix.real[name]) for name in databases), end_section=True)
    above = BASE
    for row in matrix.rows:
        notes = [f"from {' + '.join(row.starts)}"] if row.starts not in ((), (above,)) else []
        table.add_row("\n ".join([row.name, *notes]), *(_stage_cell(row, name) for name in databases))
        above = row.name
    return table


def _stage_cell(row: RealismRow, database: str) -> str:
    if database not in row.realism:
        return "-"
    return _cell(row.realism[database], "*" if database in row.databases else "~" if database in row.replay else " ")


def _cell(found: Realism, mark: str = " ") -> str:
    # Three digits of each, whatever their size, so that they stand in 14 letters.
    return f"{_short(found.distance)}{mark} {_short(found.kid)}"


def _short(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 100 else f"{number:.0f}" if abs(number) < 1e5 else f"{number:.0e}"
