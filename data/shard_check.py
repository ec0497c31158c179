"""Reads every byte of a folder of shards and tells what is not as it was written."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.embeddings import ARRAY_FILE, check_embeddings, read_embeddings
from data.errors import DataError
from data.hashed_table import ENCODE_AGAIN
from data.shard_index import CONTENTS_FILE, MEMBERS, Contents, index_path, read_index, tar_path
from data.shards import checked_shard

MAX_NAMED_SAMPLES = 3


class Checked(NamedTuple):
    """A thing that was looked at, by its path. problem: None if every byte of it is right."""

    path: Path
    problem: str | None


def check_shards(folder: Path) -> Iterator[Checked]:
    """Yield what was found of a folder's fingerprint, its embeddings and each of its shards, one after another."""
    try:
        contents = Contents.read(folder)
    except DataError as problem:
        yield Checked(folder / CONTENTS_FILE, str(problem))
        return
    yield Checked(folder / CONTENTS_FILE, None)
    yield Checked(folder / ARRAY_FILE, _problem_of_text(folder))
    for name in contents.shards:
        yield Checked(tar_path(folder, name), _problem_of_shard(folder, name, contents))


def _problem_of_text(folder: Path) -> str | None:
    try:
        read_embeddings(folder)
        check_embeddings(folder)
    except DataError as problem:
        return str(problem)
    return None


def _problem_of_shard(folder: Path, name: str, contents: Contents) -> str | None:
    try:
        facts = checked_shard(folder, name, contents)
    except DataError as problem:
        return str(problem)
    tar = tar_path(folder, name)
    with tar.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() == facts.tar_sha256:
            return None
    ids = _damaged_samples(folder, name)
    more = f" and {len(ids) - MAX_NAMED_SAMPLES} more" if len(ids) > MAX_NAMED_SAMPLES else ""
    where = f"at {', '.join(ids[:MAX_NAMED_SAMPLES])}{more}" if ids else "outside of its samples"
    return f"{tar} is damaged {where}: remove it and {ENCODE_AGAIN}"


def _damaged_samples(folder: Path, name: str) -> list[str]:
    """Return the ids of a tar's samples that have not the bytes that their index says."""
    _, table = read_index(index_path(folder, name))
    damaged = []
    with tar_path(folder, name).open("rb") as tar:
        for row in table.to_pylist():
            digest = hashlib.sha256()
            for kind in (member.split(".")[0] for member in MEMBERS):
                tar.seek(row[f"{kind}_offset"])
                digest.update(tar.read(row[f"{kind}_bytes"]))
            if digest.hexdigest() != row["sha256"]:
                damaged.append(row["id"])
    return damaged
