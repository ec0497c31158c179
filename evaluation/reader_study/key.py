"""The key of a reader study: which of its images are real. It stays with the study's leader."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from data.durable import replacing
from data.errors import DataError

Kind = Literal["real", "generated"]
KINDS: tuple[Kind, ...] = ("real", "generated")


class KeyRow(NamedTuple):
    """One image. image: its id on the page. source: the manifest's id, or what it was generated from."""

    study: str
    image: str
    kind: Kind
    database: str
    label: str
    source: str


def write_key(path: Path, rows: Sequence[KeyRow]) -> None:
    """Replace the CSV file at `path`."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(KeyRow._fields)
        writer.writerows(rows)


def read_key(path: Path) -> list[KeyRow]:
    """Return the rows of a key, all of one study. Raises: DataError, one line, if the file is no such key."""
    if not path.is_file():
        raise DataError(f"there is no key {path}: make the study first, by `sonoshard evaluate CONFIG --reader-study`")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8 ({error}): take the study's own") from error
    if not lines or tuple(lines[0]) != KeyRow._fields or any(len(line) != len(lines[0]) for line in lines):
        raise DataError(f"{path} is no key of a reader study: its columns must be {', '.join(KeyRow._fields)}")
    for study, image, kind, *_ in lines[1:]:
        if study != lines[1][0] or kind not in KINDS:
            raise DataError(
                f"{path}: image {image} is of study {study} and {kind}, needed one study, real or generated"
            )
    if {line[2] for line in lines[1:]} != set(KINDS) or len({line[1] for line in lines[1:]}) < len(lines) - 1:
        raise DataError(f"{path} is no whole key: needed real and generated images, each once")
    return [KeyRow._make(line) for line in lines[1:]]
