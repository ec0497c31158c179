"""Checks the hashes of shards, checkpoints and bundles, and that models can be opened, wherever they lie."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data.errors import DataError
from data.shard_check import Checked, check_shards
from data.shard_index import CONTENTS_FILE
from distributed.checkpoint import named_checkpoint, verified_manifest
from distributed.errors import CheckpointError, DamagedError
from launch.errors import EXIT_FAILED
from tools.export.bundle_check import check_bundle, holds_bundle

LABELS = ("LATEST", "BEST")


def verify(paths: Iterable[Path]) -> int:
    """Print a line for each thing found under `paths`, the damaged ones again at the end; return the exit code.

    Raises: DataError, before anything is read, if there is nothing to check under one of them.
    """
    found = {path: _folders(path) for path in paths}
    for path, folders in found.items():
        if not folders:
            raise DataError(
                f"{path} holds nothing to verify: give a folder of shards, a checkpoint, a stage, a model, a bundle or"
                " a run"
            )
    damaged = []
    num_checked = 0
    for folder in dict.fromkeys(folder for folders in found.values() for folder in folders):
        for checked in _check(folder):
            num_checked += 1
            print(f"{'ok' if checked.problem is None else 'DAMAGED':8}{checked.path}", flush=True)
            if checked.problem is not None:
                damaged.append(checked.problem)
    if not damaged:
        print(f"all {num_checked} are right")
        return 0
    print(f"{len(damaged)} of {num_checked} are damaged:")
    print("\n".join(f"  {problem}" for problem in damaged))
    return EXIT_FAILED


def _folders(path: Path) -> list[Path]:
    """Return `path` and the folders under it that hold something to check; hidden ones are unfinished."""
    if not path.is_dir():
        return []
    below = (folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith("."))
    return [*([path] if _kinds(path) else []), *(folder for child in below for folder in _folders(child))]


def _kinds(folder: Path) -> list[str]:
    names = {
        "shards": (folder / CONTENTS_FILE).exists(),
        "checkpoint": folder.name.startswith("step-"),
        "bundle": holds_bundle(folder),
        "labels": any((folder / label).exists() for label in LABELS),
        "model": any(folder.glob("*.safetensors")) and (folder / "config.json").exists(),
    }
    return [name for name, is_it in names.items() if is_it]


def _check(folder: Path) -> Iterator[Checked]:
    for kind in _kinds(folder):
        if kind == "shards":
            yield from check_shards(folder)
        elif kind == "checkpoint":
            yield Checked(folder, _problem_of_checkpoint(folder))
        elif kind == "bundle":
            yield from check_bundle(folder)
        elif kind == "labels":
            yield from _check_labels(folder)
        else:
            yield from (Checked(file, _problem_of_weights(file)) for file in sorted(folder.glob("*.safetensors")))


def _problem_of_checkpoint(folder: Path) -> str | None:
    try:
        verified_manifest(folder)
    except DamagedError as damage:
        return f"{folder.parent}/{damage}"
    except CheckpointError as other_format:
        return str(other_format)
    return None


def _check_labels(folder: Path) -> Iterator[Checked]:
    for label in LABELS:
        named = named_checkpoint(folder, label)
        if named is not None:
            problem = None if named.is_dir() else f"{folder / label} names {named.name}, which is not there"
            yield Checked(folder / label, problem)


def _problem_of_weights(file: Path) -> str | None:
    """Return what keeps a model's weights from being opened. They carry no hash: a flipped bit is not found."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            return None
    except (SafetensorError, OSError) as problem:
        return f"{file} cannot be opened ({problem}): export it again, or train again from the last checkpoint"
