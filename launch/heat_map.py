"""The forgetting matrix as a picture: stages by databases, coloured by the change of the loss against the base."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from launch.forgetting import ForgettingMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

DPI = 150
# Inches. The margins hold title and databases, averages, colour bar and legend; the left one grows with the names.
CELL_WIDTH, CELL_HEIGHT = 1.3, 0.62
TOP, LINE_HEIGHT, RIGHT, BOTTOM = 0.8, 0.17, 2.4, 1.05
NAME_LETTER_WIDTH, NOTE_LETTER_WIDTH, LEAST_LEFT = 0.105, 0.077, 1.35
# A matrix in which nothing happened is not coloured as if it had, and one loss that burst leaves the others theirs.
LEAST_LIMIT, GREATEST_LIMIT = 0.02, 1.0
# Blue is a lower loss than the base's, red a higher one: told apart in every common kind of colour blindness. Its ends
# are too dark to write on.
COLOURS, COLOURS_BEGIN, COLOURS_END = "RdBu_r", 0.2, 0.8
INK, PALE_INK, MISSING = "#1a1a1a", "#5f5f5f", "#ececec"
DASHES = (0, (2.2, 1.4))
# That fit above a column.
LETTERS_OF_DATABASE = 14


def heat_map(matrix: ForgettingMatrix) -> NDArray[np.uint8]:
    """Return the picture, uint8 [H, W, 3]. The matrix has at least one database.

    A solid outline is a database that the stage was trained on, a dashed one a database that it replayed. Beside the
    last stage of each chain stand its average forgetting and forward transfer.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_rows, num_columns = len(matrix.rows), len(matrix.databases)
    labels = [["base model" if row is matrix.base else row.name, *matrix.notes(row)] for row in matrix.rows]
    names = max(NAME_LETTER_WIDTH * len(lines[0]) for lines in labels)
    notes = max(NOTE_LETTER_WIDTH * len(note) for lines in labels for note in ["", *lines[1:]])
    left = max(LEAST_LEFT, 0.35 + max(names, notes))
    headings = [_wrapped(name) for name in matrix.databases]
    top = TOP + LINE_HEIGHT * max(1 + heading.count("\n") for heading in headings)
    width, height = num_columns * CELL_WIDTH, num_rows * CELL_HEIGHT
    # Title and legend want the width of three columns.
    whole = np.array((left + max(width, 3 * CELL_WIDTH) + RIGHT, top + height + BOTTOM))
    with matplotlib.style.context("default", after_reset=True):  # whatever the user's own settings are
        figure = Figure(figsize=(float(whole[0]), float(whole[1])), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((left / whole[0], BOTTOM / whole[1], width / whole[0], height / whole[1]))
        axes.set(xlim=(0, num_columns), ylim=(num_rows, 0))
        axes.set_axis_off()
        colours = _colours(matrix)
        _draw_title(axes, top)
        for column, heading in enumerate(headings):
            axes.text(column + 0.5, -0.13, heading, ha="center", va="bottom", fontsize=10, color=INK)
        for number, lines in enumerate(labels):
            _draw_labels(axes, number, lines)
            _draw_cells(axes, matrix, number, colours)
        for number in range(len(matrix.rows)):  # over the neighbours' cells
            _draw_outlines(axes, matrix, number)
        _draw_averages(axes, matrix)
        bar = figure.add_axes((left / whole[0], 0.63 / whole[1], 2 * CELL_WIDTH / whole[0], 0.11 / whole[1]))
        _draw_key(bar, colours)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, LETTERS_OF_DATABASE))


def _percent(change: float) -> str:
    """Return a change for a reader, with a minus as long as the plus."""
    return f"{100 * change:+.1f} %".replace("-", "\N{MINUS SIGN}")


def _colours(matrix: ForgettingMatrix) -> "ScalarMappable":
    """Return the colours of changes, alike to both sides of 0."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    changes = [matrix.change(row, name) for row in matrix.rows for name in matrix.databases]
    greatest = max((abs(change) for change in changes if change is not None), default=0.0)
    limit = min(max(greatest, LEAST_LIMIT), GREATEST_LIMIT)
    shades = matplotlib.colormaps[COLOURS](np.linspace(COLOURS_BEGIN, COLOURS_END, 257))
    return ScalarMappable(Normalize(-limit, limit), LinearSegmentedColormap.from_list("change", list(shades), N=257))


def _draw_title(axes: "Axes", top: float) -> None:
    """Draw what the picture shows, `top` inches above the cells."""
    where: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
    title = "Validation loss after each stage"
    axes.annotate(title, (0, 1), (0, 72 * top - 13), **where, fontsize=13, weight="bold", color=INK)
    note = "on held-out patients at fixed noise, and its change against the base model"
    axes.annotate(note, (0, 1), (0, 72 * top - 33), **where, fontsize=9, color=PALE_INK)


def _draw_labels(axes: "Axes", number: int, lines: list[str]) -> None:
    """Draw a row's name and the notes below it, in the middle of its height together."""
    name, *notes = lines
    at = number + 0.5 - 0.13 * len(notes)
    axes.text(-0.1, at, name, ha="right", va="center", fontsize=11, weight="bold", color=INK)
    for line, note in enumerate(notes, start=1):
        axes.text(-0.1, at + 0.04 + 0.25 * line, note, ha="right", va="center", fontsize=8.5, color=PALE_INK)


def _draw_cells(axes: "Axes", matrix: ForgettingMatrix, number: int, colours: "ScalarMappable") -> None:
    from matplotlib.patches import Rectangle

    row = matrix.rows[number]
    for column, name in enumerate(matrix.databases):
        loss, change = row.losses.get(name), matrix.change(row, name)
        colour: Any = MISSING if loss is None else colours.to_rgba(np.array([change or 0.0]))[0]
        axes.add_patch(Rectangle((column, number), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
        centred: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
        figure = "not known" if loss is None else f"{loss:.4f}"
        axes.text(column + 0.5, number + (0.5 if change is None else 0.37), figure, **centred, fontsize=11)
        if change is not None:
            axes.text(column + 0.5, number + 0.7, _percent(change), **centred, fontsize=8.5)


def _draw_outlines(axes: "Axes", matrix: ForgettingMatrix, number: int) -> None:
    from matplotlib.patches import Rectangle

    row = matrix.rows[number]
    for column, name in enumerate(matrix.databases):
        if name in row.trained_on:
            style: Any = DASHES if name in row.replay else "-"
            inner = Rectangle((column + 0.017, number + 0.036), 0.966, 0.928)
            inner.set(fill=False, edgecolor=INK, linewidth=1.8, linestyle=style, zorder=3)
            axes.add_patch(inner)


def _draw_averages(axes: "Axes", matrix: ForgettingMatrix) -> None:
    numbers = {row.name: number for number, row in enumerate(matrix.rows)}
    for chain in matrix.chains:
        known = {"average forgetting": chain.forgetting, "forward transfer": chain.forward_transfer}
        lines = [f"{name} {_percent(average.relative)}" for name, average in known.items() if average]
        where = (len(matrix.databases) + 0.12, numbers[chain.stages[-1]] + 0.5)
        axes.text(*where, "\n".join(lines), ha="left", va="center", fontsize=9.5, color=INK, linespacing=1.5)


def _draw_key(bar: "Axes", colours: "ScalarMappable") -> None:
    """Draw the colours' scale, and beside it what the outlines mean."""
    from matplotlib.patches import Patch

    _, limit = colours.get_clim()
    assert limit is not None
    shades = colours.to_rgba(np.linspace(-limit, limit, 257))[None]
    bar.imshow(shades, aspect="auto", extent=(-limit, limit, 0, 1))
    bar.set_yticks([])
    ticks = [-limit, 0, limit]
    bar.set_xticks(ticks, [f"{_percent(-limit)}\nlower", "0\nas the base", f"{_percent(limit)}\nhigher"])
    bar.tick_params(length=0, labelsize=8.5, labelcolor=PALE_INK, pad=4)
    for side in bar.spines.values():
        side.set_visible(False)
    meanings: dict[str, Any] = {"trained on in this stage": "-", "replayed in this stage": DASHES}
    outlines = [
        Patch(fill=False, edgecolor=INK, linewidth=1.5, linestyle=style, label=label)
        for label, style in meanings.items()
    ]
    bar.legend(
        handles=outlines,
        loc="upper left",
        bbox_to_anchor=(1.14, 2.2),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.6,
        handleheight=1.1,
        labelspacing=0.6,
    )
