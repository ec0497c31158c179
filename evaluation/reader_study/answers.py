"""What readers answered: the CSV files that the page of a study lets them download."""

# N images

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from evaluation.reader_study.key import KINDS, KeyRow
from evaluation.reader_study.page import COLUMNS, NUM_GENERATED, SCALE


@dataclass(frozen=True)
class Answers:
    """One reader's answers, in the key's order. confidence_N: 1 (surely generated) to 6. seconds_N: on each image."""

    reader: str
    confidence_N: NDArray[np.int64]
    seconds_N: NDArray[np.float64]

    @property
    def says_generated_N(self) -> NDArray[np.bool_]:
        """Whether each image was held for generated."""
        return self.confidence_N <= NUM_GENERATED


def read_all_answers(paths: Sequence[Path], key: Sequence[KeyRow]) -> list[Answers]:
    """Return the answers of each file. Raises: DataError, one line, if one is wrong or a reader has two."""
    found: dict[str, Path] = {}
    answers = []
    for path in paths:
        answers.append(read_answers(path, key))
        reader = answers[-1].reader
        if reader in found:
            raise DataError(f"{path} and {found[reader]} are both of reader {reader}: give one file for each reader")
        found[reader] = path
    return answers


def read_answers(path: Path, key: Sequence[KeyRow]) -> Answers:
    """Return one reader's answers to every image of a study. Raises: DataError, one line, if the file is wrong."""
    if not path.is_file():
        raise DataError(
            f"there are no answers {path}: give the CSV file that a reader downloaded from the study's page"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file of answers ({error}): give the file as it was downloaded") from error
    _check_columns(path, lines)
    by_image: dict[str, Mapping[str, str]] = {}
    of_study = {row.image for row in key}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(lines[0]):
            raise DataError(f"{path}, line {number} has {len(line)} cells, needed {len(lines[0])}")
        row = dict(zip(lines[0], line, strict=True))
        image = row["image"]
        if row["study"] != key[0].study:
            raise DataError(
                f"{path} answers study {row['study']}, the key is of study {key[0].study}: give that study's key"
            )
        if image not in of_study:
            raise DataError(f"{path}, line {number}: image {image} is not in study {key[0].study}")
        if image in by_image:
            raise DataError(f"{path}, line {number}: image {image} is answered twice, needed one answer for each")
        if row["reader"] != lines[1][lines[0].index("reader")]:
            raise DataError(f"{path}, line {number} is of reader {row['reader']}: give one file for each reader")
        _check_answer(path, number, row)
        by_image[image] = row
    if missing := [row.image for row in key if row.image not in by_image]:
        raise DataError(
            f"{path} has no answer to {len(missing)} of {len(key)} images (the first: {missing[0]}): let the reader"
            " finish, on the same computer and under the same name"
        )
    rows = [by_image[row.image] for row in key]
    return Answers(
        rows[0]["reader"],
        np.array([int(row["confidence"]) for row in rows]),
        np.array([float(row["seconds"]) for row in rows]),
    )


def _check_columns(path: Path, lines: Sequence[Sequence[str]]) -> None:
    columns = lines[0] if lines else []
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise DataError(
            f"{path} has an unknown column {unknown[0]!r}, needed {','.join(COLUMNS)}, as it was downloaded"
        )
    if absent := [name for name in COLUMNS if name not in columns]:
        raise DataError(f"{path} has no column {absent[0]!r}, needed {','.join(COLUMNS)}, as it was downloaded")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} has a column twice, needed {','.join(COLUMNS)}, as it was downloaded")


def _check_answer(path: Path, number: int, row: Mapping[str, str]) -> None:
    if row["confidence"] not in {str(value) for value in range(1, len(SCALE) + 1)}:
        raise DataError(f"{path}, line {number}: confidence={row['confidence']}, needed 1 to {len(SCALE)}")
    means = "generated" if int(row["confidence"]) <= NUM_GENERATED else "real"
    if row["answer"] != means:
        raise DataError(
            f"{path}, line {number}: answer={row['answer']} but confidence={row['confidence']} means {means}, needed"
            f" {' or '.join(KINDS)} as it was downloaded"
        )
    try:
        seconds = float(row["seconds"])
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise DataError(f"{path}, line {number}: seconds={row['seconds']}, needed a number from 0")
