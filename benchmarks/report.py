"""What a benchmark reports: tables to read, and one JSON line, of which `python -m benchmarks` makes a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

# What a ratio is of, and so whether less or more of it is better.
MEANINGS = {
    "time": "of the time",
    "memory": "of the memory",
    "rate": "times the rate",
    "prediction": "of what was measured",
    "loss": "times the loss",
}
Kind = Literal["time", "memory", "rate", "prediction", "loss"]


@dataclass(frozen=True)
class ReportTable:
    """A table of a report. rows: cells as they are shown, as many as `head` has."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Beside:
    """A figure of ours and that of a public alternative in the same run. ratio: the first over the second."""

    what: str
    ours: str
    alternative: str
    ratio: float
    kind: Kind

    @property
    def said(self) -> str:
        """The ratio and what it is of, such as `0.98 of the time`."""
        digits = 4 if self.kind == "loss" else 2
        return f"{self.ratio:.{digits}f} {MEANINGS[self.kind]}"


@dataclass(frozen=True)
class Limit:
    """A figure that must not be more than a limit."""

    what: str
    figure: float
    limit: float

    @property
    def is_kept(self) -> bool:
        """Whether the figure is within its limit. One that is no number is not."""
        return self.figure <= self.limit

    @property
    def said(self) -> str:
        """The figure beside its limit, and whether it is within."""
        verdict = "within the limit" if self.is_kept else "NOT within the limit"
        return f"{self.what}: {self.figure:.3f}, at most {self.limit:.3f}: {verdict}"


def report(
    benchmark: str,
    tables: Sequence[ReportTable],
    beside: Sequence[Beside],
    figures: Mapping[str, Any],
    limits: Sequence[Limit] = (),
) -> int:
    """Print the tables and the JSON line; return an exit code, 1 if a limit is not kept.

    figures: what a program may want that cells have rounded.
    """
    console = Console()
    for table in tables:
        shown = Table(*table.head, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for one in beside:
        console.print(f"{one.what}: {one.ours}, {one.alternative}: {one.said}", highlight=False)
    for limit in limits:
        console.print(limit.said, highlight=False, soft_wrap=True)
    line = {"benchmark": benchmark, **figures}
    line |= {"tables": [asdict(table) for table in tables], "beside": [asdict(one) for one in beside]}
    line["limits"] = [{**asdict(limit), "is_kept": limit.is_kept} for limit in limits]
    print(json.dumps(line))
    return 0 if all(limit.is_kept for limit in limits) else 1
