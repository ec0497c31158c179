"""An experiment as a table in the terminal, with what good looks like."""

import textwrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from evaluation.downstream.paired import SIGNIFICANT
from evaluation.downstream.result import ArmResult, DatabaseResult, Downstream, Experiment
from evaluation.intervals import Interval

TITLES: dict[Experiment, str] = {
    "classification": "Do generated images help a classifier?",
    "generated-only": "Do generated images alone teach a classifier?",
    "segmentation": "Do generated images help a segmenter?",
}
GOOD: dict[Experiment, str] = {
    "classification": (
        "Good: `real + generated` is better than `real` (the paper, on BUSI: 81 -> 87 %), and `real + both` reaches"
        " more than `real + augmentation`. AUC by chance: 50 %."
    ),
    "generated-only": (
        "Good: in the test split, `generated alone` reaches as much as the real images that its model learnt from. In"
        " these (the paper, on 20 % of BUSI: 94 %) copies of them would do as well. AUC by chance: 50 %."
    ),
    "segmentation": (
        "Good: `real + generated` is better than `real`, and `real + both` reaches more than `real + augmentation`."
        " Dice of the same mask: 100 %, of another place: 0 %."
    ),
}
GAIN_WIDTH = 16


def print_downstream(result: Downstream, console: Console | None = None) -> None:
    """Print a table of each database, and one sentence that says what good looks like."""
    console = console or Console()
    console.print(f"\n{TITLES[result.experiment]}", highlight=False, markup=False)
    for database in result.databases:
        arms = database.arms
        test = arms[-1]
        told = (
            f"{database.name} ({', '.join(database.classes)}): images drawn by {result.images_of}; {result.num_seeds}"
            f" networks of each kind, {result.network['steps']} steps each; test split of {test.num_tested} images of"
            f" {test.num_patients} patients"
        )
        console.print("\n" + textwrap.fill(told, console.width), highlight=False, markup=False)
        console.print()
        console.print(_table(result, database))
    notes = [
        *(f"{name} is left out: {why}" for name, why in result.left_out.items()),
        GOOD[result.experiment],
        "In brackets: 95 % intervals over patients and seeds. p: of no difference, by patients; below"
        f" {SIGNIFICANT}, with an interval that leaves out 0, there is one. Up: seeds that gain.",
    ]
    console.print()
    for note in notes:
        # A number and its unit stay on one line.
        note = note.replace(" %", "\N{NO-BREAK SPACE}%")
        console.print(textwrap.fill(note, console.width, subsequent_indent="  "), highlight=False, markup=False)


def _table(result: Downstream, database: DatabaseResult) -> Table:
    has_tests = len({arm.tested_on for arm in database.arms}) > 1
    # A column more needs all of the 80 letters that there may be.
    padding = (0, 0 if has_tests else 1, 0, 0)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    baseline = next((arm.baseline for arm in database.arms if arm.baseline), "")
    gain = textwrap.fill(f"gain over {baseline}", GAIN_WIDTH)
    for name in ("trained on", *(["tested on"] if has_tests else []), f"{result.measure} %", f"{gain} %", "difference"):
        table.add_column(name, no_wrap=True)
    for arm in database.arms:
        tested = [arm.tested_on] if has_tests else []
        table.add_row(
            f"{arm.name}\n  {_made_of(arm)}", *tested, _percent(arm.reached), *_against(arm, result.num_seeds)
        )
    return table


def _made_of(arm: ArmResult) -> str:
    if not arm.num_generated:
        return f"{arm.num_real} real"
    return f"{arm.num_real} + {arm.num_generated} drawn" if arm.num_real else f"{arm.num_generated} drawn"


def _against(arm: ArmResult, num_seeds: int) -> tuple[str, str]:
    if arm.against is None:
        return "", ""
    of = arm.against
    gain = f"{signed_percent(of.gain.value)}\n({signed_percent(of.gain.low)} to {signed_percent(of.gain.high)})"
    return gain, f"{of.verdict}\np {of.p_patients:.3f}, {of.num_seeds_better}/{num_seeds} up"


def signed_percent(share: float) -> str:
    """Return a share in per cent, with one decimal; with one digit where that would hide on which side of 0 it is."""
    percent = round(100 * share, 4)  # without what rounding leaves of 0
    rounded = f"{percent:+z.1f}"
    return f"{percent:+.1g}" if float(rounded) == 0 != percent else rounded


def _percent(reached: Interval) -> str:
    value, low, high = (
        f"{100 * share:.1f}".replace("100.0", "100") for share in (reached.value, reached.low, reached.high)
    )
    return f"{value}\n({low} to {high})"
