"""The page that shows what the demo made: RUN/index.html."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.durable import replacing
from evaluation.downstream.result import Downstream
from evaluation.downstream.table import GOOD, TITLES, signed_percent
from evaluation.report import Report, sheet_file
from launch.config import RunConfig

TEMPLATE = Path(__file__).parent / "page.html.jinja"


def write_page(config: RunConfig, merged: Mapping[str, Any], report: Report, experiments: Sequence[Downstream]) -> Path:
    """Write the page of a demo that ran to its end, and return where it lies. merged: the table of its merge.

    report: of the stage that draws from masks. experiments: what generated images are worth.
    """
    from jinja2 import Environment, StrictUndefined

    matrix = json.loads((config.run / "forgetting.json").read_text(encoding="utf-8"))
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    page = config.run / "index.html"
    text = template.render(
        run=config.run,
        stages=config.stages,
        first=config.stages[0],
        chains=[chain for chain in matrix["chains"] if chain["forgetting"]],
        merged=merged,
        # A report that was there already is known by its whole path, whatever the run's folder was called by.
        report=report.page.resolve().relative_to(config.run.resolve()).parent,
        verdicts=report.verdicts,
        masks=json.loads(report.metrics.read_text(encoding="utf-8"))["masks"],
        sheet_file=sheet_file,
        experiments=experiments,
        titles=TITLES,
        good=GOOD,
        signed_percent=signed_percent,
    )
    with replacing(page) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return page
