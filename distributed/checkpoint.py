"""Checkpoints: one safetensors file of slices a rank and a manifest, written whole or not at all.

    checkpoints/step-00000010/manifest.json                        layout, hashes, position, versions
    checkpoints/step-00000010/slices-00000-of-00002.safetensors    `003.master`, `003.state1`, `003.absmax1`, ...
    checkpoints/LATEST                                             the name of the newest complete one
    checkpoints/BEST                                               of the one with the lowest validation loss

A checkpoint is loaded at any ZeRO stage and world size: see stored_state.py.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distributed.engine import Engine
from distributed.errors import CheckpointError
from distributed.layout import GroupLayout
from distributed.stored_state import StoredState, slices_key

FORMAT_VERSION = 2

# An average's slices, one a group, by the average's name.
Averages = Mapping[str, Sequence[Tensor]]


@dataclass(frozen=True)
class Found:
    """A complete checkpoint: its folder, its manifest, and what was skipped on the way to it (one line each)."""

    folder: Path
    manifest: dict[str, Any]
    skipped: tuple[str, ...]

    @property
    def position(self) -> dict[str, Any]:
        """What the training loop stored: where it was."""
        position: dict[str, Any] = self.manifest["position"]
        return position


def step_folder(root: Path, step: int) -> Path:
    """Return the folder of the checkpoint after optimizer step `step`."""
    return root / f"step-{step:08d}"


def named_checkpoint(root: Path, label: str) -> Path | None:
    """Return the folder that `label` (LATEST or BEST) names under `root`; None where there is none."""
    with suppress(FileNotFoundError):
        return root / (root / label).read_text(encoding="utf-8").strip()
    return None


def newest_position(root: Path) -> dict[str, Any] | None:
    """Return the position of the checkpoint that LATEST names, unverified, at once; None where there is none."""
    folder = named_checkpoint(root, "LATEST")
    return stored_position(folder) if folder else None


def stored_position(folder: Path) -> dict[str, Any] | None:
    """Return the position of one checkpoint, unverified; None where it cannot be read."""
    try:
        position: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["position"]
    except (OSError, ValueError, KeyError):
        return None  # `find_checkpoint` says what is wrong, if anything is
    return position


def find_checkpoint(root: Path) -> Found | None:
    """Return the newest complete checkpoint under `root`, verified by hash; None where there never was one.

    Raises: CheckpointError if there are checkpoints and none is whole.
    """
    folders = sorted(root.glob("step-*"), reverse=True)
    latest = named_checkpoint(root, "LATEST")
    folders.sort(key=lambda folder: folder != latest)  # stable: LATEST first, then the newest
    skipped: list[str] = []
    for folder in folders:
        try:
            return Found(folder, verified_manifest(folder), tuple(skipped))
        except CheckpointError as damage:
            skipped.append(str(damage))
    if skipped:
        raise CheckpointError(
            f"no checkpoint in {root} is whole ({'; '.join(skipped)}): restore one, or delete the folder to start anew"
        )
    return None


def labelled_checkpoint(root: Path, label: str) -> Found | None:
    """Return the checkpoint that `label` (LATEST or BEST) names under `root`, verified by hash; None where none is.

    Raises: CheckpointError if it is not whole.
    """
    folder = named_checkpoint(root, label)
    return Found(folder, verified_manifest(folder), ()) if folder else None


def load_checkpoint(found: Found, engine: Engine, averages: Averages) -> None:
    """Put the state of `found` into the engine and into `averages`. Collective; any stage and world size.

    Raises: CheckpointError if its parameters are not the engine's, or an average is not in it.
    """
    stored = StoredState(found.folder, found.manifest["groups"])
    difference = _first_difference(stored.layouts, [group.layout for group in engine.groups])
    if difference:
        raise CheckpointError(f"{found.folder} {difference}: give this run another folder")
    for name in averages:
        if name not in found.manifest["averages"]:
            there = ", ".join(found.manifest["averages"]) or "none"
            raise CheckpointError(
                f"{found.folder} holds no average {name} (it holds {there}): set ema.lengths to what it holds, or give"
                " this run another folder"
            )
    for number, group in enumerate(engine.groups):
        wanted = {name: slices[number] for name, slices in averages.items()}
        stored.load(group, number, engine.slice_index, wanted)
    engine.restore(int(found.manifest["num_steps"]))


def slices_of(engine: Engine, averages: Averages) -> dict[str, Tensor]:
    """Return what this rank stores, by key: its slices of masters, moments and averages. Nothing is copied."""
    tensors: dict[str, Tensor] = {}
    for number, group in enumerate(engine.groups):
        kinds = {"master": group.master.data, **group.moments}
        kinds |= {name: slices[number] for name, slices in averages.items()}
        tensors |= {slices_key(number, kind): tensor for kind, tensor in kinds.items()}
    return tensors


def verified_manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest once every file of it was found to match its hash.

    Raises: CheckpointError with what is wrong.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files: Mapping[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError) as problem:
        raise CheckpointError(f"{folder.name}: no readable manifest.json ({type(problem).__name__})") from problem
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder.name}: format {manifest.get('format_version')}, this version reads {FORMAT_VERSION}"
        )
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder.name}: {name} is missing")
        if _sha256(folder / name) != digest:
            raise CheckpointError(f"{folder.name}: {name} does not match its hash")
    return manifest


def publish(partial: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Give a folder of complete slices its manifest, its final name and the name in LATEST. Raises: OSError."""
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _flush(partial / "manifest.json")
    _flush(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _flush(final.parent)
    _write_label(final.parent, "LATEST", final.name)


def prune(root: Path, newest: Path, *, keep_last: int, keep_best: bool) -> None:
    """Delete what is older than the last `keep_last` up to `newest`, but for the one of the lowest validation loss."""
    folders = sorted((path for path in root.glob("step-*") if path.name <= newest.name), reverse=True)
    kept = set(folders[:keep_last])
    if keep_best:
        losses = {folder: (stored_position(folder) or {}).get("validation_loss") for folder in folders}
        validated = {folder: loss for folder, loss in losses.items() if loss is not None}
        if validated:
            best = min(validated, key=lambda folder: (validated[folder], folder))
            _write_label(root, "BEST", best.name)
            kept.add(best)
    # What a killed process left of a save is never read.
    for folder in [*(folder for folder in folders if folder not in kept), *root.glob(".step-*.partial")]:
        shutil.rmtree(folder, ignore_errors=True)


def _first_difference(saved: Sequence[GroupLayout], current: Sequence[GroupLayout]) -> str | None:
    """Return a clause that names the first parameter in which two layouts differ; None where none does."""
    stored = {member.name: (member, layout) for layout in saved for member in layout.members}
    wanted = {member.name: (member, layout) for layout in current for member in layout.members}
    for name, (member, layout) in wanted.items():
        if name not in stored:
            return f"has no parameter {name}, which this model has"
        other, other_layout = stored[name]
        if other.shape != member.shape:
            return f"has {name} with shape {list(other.shape)}, this run has {list(member.shape)}"
        if other_layout.optim_bits != layout.optim_bits:
            return f"has {name} with {other_layout.optim_bits}-bit moments, this run has {layout.optim_bits}-bit ones"
    surplus = sorted(stored.keys() - wanted.keys())
    return f"has parameter {surplus[0]}, which this model has not" if surplus else None


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
