"""Checkpoints: one safetensors file of slices per rank and a manifest, written whole or not at all.

    checkpoints/step-00000010/manifest.json                        layout, hashes (also of itself), position, versions
    checkpoints/step-00000010/slices-00000-of-00002.safetensors    `003.master`, `003.state1`, `003.absmax1`, ...
    checkpoints/LATEST                                             the name of the newest complete one
    checkpoints/BEST                                               of the one with the lowest validation loss

How they are found, checked and named, without torch; checkpoint_state.py loads one, at any ZeRO stage and world size.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.errors import CheckpointError, DamagedError

FORMAT_VERSION = 3


@dataclass(frozen=True)
class Found:
    """A complete checkpoint: its folder, its manifest, and what was skipped on the way to it (one line each).

    damaged: the names of the folders that were skipped.
    """

    folder: Path
    manifest: dict[str, Any]
    skipped: tuple[str, ...]
    damaged: frozenset[str] = frozenset()

    @property
    def position(self) -> dict[str, Any]:
        """What the training loop stored: where it was."""
        position: dict[str, Any] = self.manifest["position"]
        return position


def slices_name(index: int, num_slices: int) -> str:
    """Return the name of the file that holds one rank's slices."""
    return f"slices-{index:05d}-of-{num_slices:05d}.safetensors"


def step_folder(root: Path, step: int) -> Path:
    """Return the folder of the checkpoint after optimizer step `step`."""
    return root / f"step-{step:08d}"


def named_checkpoint(root: Path, label: str) -> Path | None:
    """Return the folder that `label` (LATEST or BEST) names under `root`; None where there is none."""
    with suppress(OSError, ValueError):  # what cannot be read names nothing
        return root / (root / label).read_text(encoding="utf-8").strip()
    return None


def newest_position(root: Path) -> dict[str, Any] | None:
    """Return the position of the checkpoint that LATEST names, by its manifest alone; None where none can be read.

    Raises: CheckpointError if another version wrote it.
    """
    folder = named_checkpoint(root, "LATEST")
    try:
        return _manifest(folder)["position"] if folder else None
    except DamagedError:
        return None  # `find_checkpoint` says what is wrong


def find_checkpoint(root: Path) -> Found | None:
    """Return the newest complete checkpoint under `root`, verified by hash; None where there never was one.

    Raises: CheckpointError if there are checkpoints and none is whole, or one met on the way is of another version.
    """
    folders = sorted(root.glob("step-*"), reverse=True)
    latest = named_checkpoint(root, "LATEST")
    folders.sort(key=lambda folder: folder != latest)  # stable: LATEST first, then the newest
    return _first_whole(folders, f"checkpoint in {root}", "delete the folder to start anew")


def lowest_checkpoint(root: Path, last_step: int) -> Found | None:
    """Return the complete checkpoint up to `last_step` of the lowest validation loss, the first of equal ones.

    None where no loss is finite. What BEST names is not asked: a save may have ended before that was written.
    Raises: CheckpointError if there are some and none is whole, or one met on the way is of another version.
    """
    last = step_folder(root, last_step)
    folders = _by_loss(folder for folder in root.glob("step-*") if folder.name <= last.name)
    what = f"checkpoint in {root} that was validated"
    return _first_whole(folders, what, "delete the stage's folder to train it anew")


def _first_whole(folders: Iterable[Path], what: str, mend: str) -> Found | None:
    """Return the first complete one of `folders`, with what is wrong with those before it; None where there are none.

    what, mend: of the message where none is complete.
    """
    skipped: dict[str, str] = {}
    for folder in folders:
        try:
            # One of another format ends this: it is as good as it was, to pass it over would train its steps again.
            return Found(folder, verified_manifest(folder), tuple(skipped.values()), frozenset(skipped))
        except DamagedError as damage:
            skipped[folder.name] = str(damage)
    if skipped:
        raise CheckpointError(f"no {what} is whole ({'; '.join(skipped.values())}): restore one, or {mend}")
    return None


def verified_manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest once it and every file of it were found to match their hashes.

    Raises: DamagedError with what is wrong; CheckpointError if another version wrote it.
    """
    manifest = _manifest(folder)
    files: Mapping[str, str] = manifest["files"]
    for name, digest in files.items():
        try:
            is_right = _sha256(folder / name) == digest
        except FileNotFoundError:
            raise DamagedError(f"{folder.name}: {name} is missing") from None
        except OSError as problem:
            raise DamagedError(f"{folder.name}: {name} cannot be read ({problem.strerror})") from problem
        if not is_right:
            raise DamagedError(f"{folder.name}: {name} does not match its hash")
    return manifest


def _manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest, found to be what was written and to name a whole set of slices."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        version, digest = int(manifest["format_version"]), manifest.pop("sha256", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DamagedError(f"{folder.name}: no readable manifest.json ({type(problem).__name__})") from problem
    if digest is not None and digest != sealed(manifest)["sha256"]:  # as every version from 3 on seals it
        raise DamagedError(f"{folder.name}: manifest.json does not match its hash")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} is of format {version}, this version reads {FORMAT_VERSION}: go on with what wrote it,"
            " or give this run another folder"
        )
    if digest is None:
        raise DamagedError(f"{folder.name}: manifest.json has no hash")
    names = set(manifest["files"])
    if not names or names != {slices_name(index, len(names)) for index in range(len(names))}:
        raise DamagedError(f"{folder.name}: manifest.json names no whole set of slices")
    return manifest


def publish(partial: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Give a folder of complete slices its manifest, its final name and the name in LATEST. Raises: OSError.

    After an error what had the name before has it still.
    """
    (partial / "manifest.json").write_text(json.dumps(sealed(manifest), indent=1), encoding="utf-8")
    _flush(partial / "manifest.json")
    _flush(partial)
    older = final.with_name(f".{final.name}.older")
    if final.exists():  # whole, it may be all that there is: it goes when the new one stands
        shutil.rmtree(older, ignore_errors=True)
        final.rename(older)
    try:
        partial.rename(final)
    except OSError:
        with suppress(OSError):
            restore_older(final.parent)
        raise
    _flush(final.parent)
    shutil.rmtree(older, ignore_errors=True)
    _write_label(final.parent, "LATEST", final.name)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest in JSON's types with the hash of all else that it says, whatever its order."""
    told: dict[str, Any] = json.loads(json.dumps(manifest))
    return {**told, "sha256": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}


def restore_older(root: Path) -> None:
    """Give a checkpoint its name back that was put aside for a newer one of the same step, which never stood.

    By who holds the run's lock alone. Raises: OSError.
    """
    for older in root.glob(".step-*.older"):
        final = root / older.name.removeprefix(".").removesuffix(".older")
        if not final.exists():
            older.rename(final)


def prune(root: Path, newest: Path, *, keep_last: int, keep_best: bool, damaged: Collection[str] = frozenset()) -> None:
    """Delete what is older than the last `keep_last` up to `newest`, but for the one of the lowest validation loss.

    A loss that is not finite is none. damaged: names of folders that count as none of either, and go with their age.
    Raises: OSError if BEST cannot be written; what `newest` holds is whole then.
    """
    folders = sorted((path for path in root.glob("step-*") if path.name <= newest.name), reverse=True)
    whole = [folder for folder in folders if folder.name not in damaged]
    last = whole[:keep_last]
    kept = {*last, *(folder for folder in folders if folder.name in damaged and folder > last[-1])}
    if keep_best:
        for best in _by_loss(whole)[:1]:
            _write_label(root, "BEST", best.name)
            kept.add(best)
    # What a killed process left of a save is never read.
    for folder in [*(folder for folder in folders if folder not in kept), *root.glob(".step-*")]:
        shutil.rmtree(folder, ignore_errors=True)


def _by_loss(folders: Iterable[Path]) -> list[Path]:
    """Return the checkpoints that were saved with a validation loss that is finite, the lowest and earliest first."""
    found = [(loss, folder) for folder in folders if math.isfinite(loss := _stored_loss(folder))]
    return [folder for _, folder in sorted(found)]


def _stored_loss(folder: Path) -> float:
    """Return the validation loss that a checkpoint was saved with, unverified; NaN where none can be read."""
    try:
        return float(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["position"]["validation_loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.nan


def _write_label(root: Path, label: str, name: str) -> None:
    temporary = root / f".{label}.partial"
    temporary.write_text(name + "\n", encoding="utf-8")
    _flush(temporary)
    temporary.rename(root / label)
    _flush(root)


def _flush(path: Path) -> None:
    """Ask the operating system to put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
