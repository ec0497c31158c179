"""What was chosen to merge, and the table that proves it: every single model and the merge, on every database."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from launch.lineage import merged_lineage
from launch.record import versions
from models.merging.folder import Merge
from tools.merge.candidates import CHOSEN_ON, REPORTED_ON, Candidates, Weights

# In the merge's folder.
TABLE_FILE = "merge.json"
MERGE = "merge"
# Digits of a loss in a file.
DIGITS = 6

How = Literal["greedy soup", "search"]


@dataclass(frozen=True)
class Choice:
    """The weights of the candidates, by their order, and how they were found."""

    how: How
    candidates: Candidates
    weights: Weights

    @property
    def by_name(self) -> dict[str, float]:
        """The shares of all candidates, 0 for those that were left out."""
        return dict(zip(self.candidates.names, self.weights, strict=True))

    def table(self) -> dict[str, Any]:
        """Return as JSON the loss of every candidate and of the merge on each database, by split.

        It was chosen on `chosen_on` alone; the test split was not looked at before. mean: over databases. relative:
        the same of losses divided by the lowest one of any single model on that database, as the choice weighs them.
        """
        singles = {name: self.candidates.single(name) for name in self.candidates.names}
        rows = {**singles, MERGE: self.weights}
        splits = [split for split in REPORTED_ON if self.candidates.held_out.databases(split)]
        return {
            "how": self.how,
            "weights": self.by_name,
            "chosen_on": CHOSEN_ON,
            "num_evaluations": self.candidates.num_evaluations,
            "splits": {split: [self._row(name, rows[name], split) for name in rows] for split in splits},
        }

    def _row(self, name: str, weights: Weights, split: str) -> dict[str, Any]:
        losses = self.candidates.losses(weights, split)
        return {
            "name": name,
            "losses": {database: round(loss, DIGITS) for database, loss in losses.items()},
            "mean": round(sum(losses.values()) / len(losses), DIGITS),
            "relative": round(self.candidates.score(weights, split), DIGITS),
        }

    def write(self, out: Path) -> dict[str, Any]:
        """Write the merge as a diffusers folder, the table within, and return the table. Raises: ModelError."""
        table = self.table()
        parents = self.candidates.parents_of(self.weights)
        files = {TABLE_FILE: (json.dumps(table, indent=1) + "\n").encode()}
        files |= merged_lineage([parent.lineage for parent in parents])
        chosen = {"chosen_by": {"how": self.how, "on": CHOSEN_ON, "run": str(self.candidates.config.run)}}
        Merge(self.candidates.recipe(self.weights), parents).write(out, {**chosen, **versions()}, files)
        return table


def print_table(table: dict[str, Any]) -> None:
    """Print what was chosen, and the losses by split."""
    chosen = {name: weight for name, weight in table["weights"].items() if weight > 0}
    print(f"{table['how']}: {' + '.join(f'{weight:g} {name}' for name, weight in chosen.items())}")
    for split, rows in table["splits"].items():
        chosen_on = ", which it was chosen on" if split == table["chosen_on"] else ", not looked at before"
        shown = Table(title=f"Loss on the {split} split{chosen_on}", title_justify="left", box=None)
        columns = ["", *rows[0]["losses"], "mean", "relative"]
        for column in columns:
            shown.add_column(column, justify="right" if column else "left")
        for row in rows:
            figures = [*row["losses"].values(), row["mean"], row["relative"]]
            style = "bold" if row["name"] == MERGE else None
            shown.add_row(row["name"], *(f"{figure:.4f}" for figure in figures), style=style)
        Console().print(shown)
    print("relative: mean over databases of the loss against the lowest one of any single model there; less is better")
