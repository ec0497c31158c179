"""The demo's merge: of the stages' models, in shares that are chosen by their loss on every database."""

import json
import shutil
from typing import Any

from launch.config import RunConfig
from models.record import RECORD_FILE
from tools.merge.choice import TABLE_FILE
from tools.merge.soup import search

MERGED = "merged"
# Merges that are tried beyond the greedy soup: the fewest that the method takes for so many stages.
BUDGET = 7


def merged_stages(config: RunConfig) -> dict[str, Any]:
    """Write RUN/merged, where it is not there yet, and return the table of losses: of each stage and of the merge."""
    out = config.run / MERGED
    stages = [config.stage_model(stage) / RECORD_FILE for stage in config.stages]
    if not out.exists() or out.stat().st_mtime < max(record.stat().st_mtime for record in stages):
        shutil.rmtree(out, ignore_errors=True)
        return search(config, budget=BUDGET).write(out)
    table: dict[str, Any] = json.loads((out / TABLE_FILE).read_text(encoding="utf-8"))
    return table
