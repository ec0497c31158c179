"""The result of a reader study: its table in the terminal, and RUN/reader_study/scores.json."""

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from data.durable import replacing
from evaluation.intervals import Interval
from evaluation.reader_study.agreement import Agreement, agreements
from evaluation.reader_study.answers import read_all_answers
from evaluation.reader_study.discrimination import ReaderScore, score_reader
from evaluation.reader_study.key import read_key

SCORES_FILE = "scores.json"
VERSION = 2
GOOD = (
    "accuracy: near 50 %, with an interval that is narrow and holds 50 %: readers cannot tell.",
    "sens., spec.: shares of generated held for generated, and of real for real; by guessing they add up to 100 %.",
    "d': near 0: readers cannot tell; 1 is about 69 % right, 2 about 84 %; below 0 they mix the kinds up.",
    "c: the reader's habit, not the images' quality: below 0 says generated too readily, above 0 real.",
    "AUC: of the confidence; near 0.5: who is surer is no more often right.",
    "kappa: agreement beyond chance; near 0 beside an accuracy near 50 %: there is nothing that all see. High: a"
    " common tell, or a common prejudice.",
)


class Scores(BaseModel):
    """A study's readers, in the order that their files were given, and how far they agree."""

    model_config = ConfigDict(frozen=True)

    version: int = VERSION
    study: str
    num_real: int
    num_generated: int
    readers: tuple[ReaderScore, ...]
    agreement: tuple[Agreement, ...]


def score_study(key: Path, answers: Sequence[Path], seed: int = 0) -> Scores:
    """Return the scores of answers by their study's key. Raises: DataError, one line, if a file is wrong."""
    rows = read_key(key)
    of_readers = read_all_answers(answers, rows)
    is_generated_N = np.array([row.kind == "generated" for row in rows])
    return Scores(
        study=rows[0].study,
        num_real=int((~is_generated_N).sum()),
        num_generated=int(is_generated_N.sum()),
        readers=tuple(score_reader(of_reader, is_generated_N, seed) for of_reader in of_readers),
        agreement=tuple(agreements(of_readers, is_generated_N, seed)),
    )


def write_scores(path: Path, scores: Scores) -> None:
    """Replace the JSON file at `path`; what has no value is null in it."""
    with replacing(path) as temporary:
        text = json.dumps(_without_nan(scores.model_dump()), indent=1, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def print_scores(scores: Scores, console: Console | None = None) -> None:
    """Print a table of readers, one of their agreement, and what good looks like."""
    console = console or Console()
    images = f"{scores.num_real} real and {scores.num_generated} generated images"
    console.print(f"\nReader study {scores.study}: {images}; 95 % intervals\n", highlight=False)
    table = _table("reader", "accuracy %", "sens. %", "spec. %", "d'", "c", "AUC", "s/image")
    for reader in scores.readers:
        table.add_row(
            _wrapped(reader.reader),
            *(_percent(value) for value in (reader.accuracy, reader.sensitivity, reader.specificity)),
            _number(reader.d_prime, 1),
            f"{reader.bias:z.1f}",
            _number(reader.auc, 2, "-"),
            f"{reader.median_seconds:.1f}",
        )
    console.print(table)
    if scores.agreement:
        table = _table("agreement", "kappa")
        for agreement in scores.agreement:
            name = "Fleiss, all readers" if len(agreement.readers) > 2 else " and ".join(agreement.readers)
            table.add_row(_wrapped(name, 40), _number(agreement.kappa, 2))
        console.print()
        console.print(table)
    console.print()
    for line in GOOD:
        console.print(textwrap.fill(line, console.width, subsequent_indent="  "), highlight=False, markup=False)


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, no_wrap=True, justify="right")
    return table


def _wrapped(name: str, width: int = 16) -> str:
    from rich.markup import escape

    return escape(textwrap.fill(name, width))


def _percent(estimate: Interval) -> str:
    value, low, high = (f"{100 * number:.0f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}\n{low}-{high}"


def _number(estimate: Interval, digits: int, between: str = " to ") -> str:
    value, low, high = (
        f"{number:z.{digits}f}" if math.isfinite(number) else "-"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}\n{low}{between}{high}"


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
