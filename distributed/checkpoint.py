"""Checkpoints: one safetensors file of slices a rank and a manifest, written whole or not at all.

    checkpoints/step-00000010/manifest.json                        layout, hashes, position, versions
    checkpoints/step-00000010/slices-00000-of-00002.safetensors    `003.master`, `003.state1`, `003.absmax1`, `003.ema`
    checkpoints/LATEST                                             the name of the newest complete one

Every tensor is a slice of a flat group, so that reading at another world size is arithmetic: elements [a, b) of the
group come from the files that hold them. A group's padding grows or shrinks at its end; it is zeros.
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

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distributed.engine import Engine, FlatGroup
from distributed.errors import CheckpointError
from distributed.optimizer import QUANTISATION_BLOCK
from distributed.rank import Rank

FORMAT_VERSION = 1


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


def save_checkpoint(
    root: Path, engine: Engine, averages: Sequence[Tensor] | None, position: dict[str, Any], keep_last: int
) -> Path:
    """Write a checkpoint under `root` and return its folder. Collective: every rank writes its own slices.

    averages: this rank's slices of the averaged weights, one a group. position: what the loop needs to go on (JSON).
    Raises: RuntimeError on every rank if any rank could not write; earlier checkpoints are untouched.
    """
    rank, final = engine.rank, step_folder(root, int(position["step"]))
    if final.exists():  # saved by schedule at this very step, and now again because of a stop
        return final
    partial = root / f".{final.name}.partial"
    if rank.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    file_name = f"slices-{rank.index:05d}-of-{rank.world_size:05d}.safetensors"
    error, digest = None, ""
    try:
        save_file(_slices(engine, averages), partial / file_name)
        _flush(partial / file_name)
        digest = _sha256(partial / file_name)
    except (OSError, RuntimeError) as failure:  # safetensors reports a full disk as its own RuntimeError
        error = f"rank {rank.index} could not write {partial / file_name}: {failure}"
    reports: list[tuple[str, str, str | None]] = [("", "", None)] * rank.world_size
    dist.all_gather_object(reports, (file_name, digest, error))
    errors = [error for _, _, error in reports if error]
    if errors:
        if rank.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        raise RuntimeError(f"{errors[0]}; earlier checkpoints in {root} are whole")
    if rank.is_first:
        manifest = {
            "format_version": FORMAT_VERSION,
            "world_size": rank.world_size,
            "num_steps": engine.num_steps,
            "has_averages": averages is not None,
            "position": position,
            "groups": [_layout(group) for group in engine.groups],
            "files": {name: digest for name, digest, _ in reports},
            "versions": {"torch": torch.__version__},
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _flush(partial / "manifest.json")
        _flush(partial)
        partial.rename(final)
        _flush(root)
        _write_latest(root, final.name)
        _delete_old(root, keep_last, newest=final.name)
    dist.barrier()
    return final


def find_checkpoint(root: Path) -> Found | None:
    """Return the newest complete checkpoint under `root`, verified by hash; None where there never was one.

    Raises: CheckpointError if there are checkpoints and none is whole.
    """
    names = sorted((path.name for path in root.glob("step-*")), reverse=True)
    with suppress(FileNotFoundError):
        latest = (root / "LATEST").read_text(encoding="utf-8").strip()
        names.sort(key=lambda name: name != latest)  # stable: LATEST first, then the newest
    skipped: list[str] = []
    for name in names:
        try:
            return Found(root / name, _verified_manifest(root / name), tuple(skipped))
        except CheckpointError as damage:
            skipped.append(str(damage))
    if skipped:
        raise CheckpointError(
            f"no checkpoint in {root} is whole ({'; '.join(skipped)}): restore one, or delete the folder to start anew"
        )
    return None


def load_checkpoint(found: Found, engine: Engine, averages: Sequence[Tensor] | None) -> None:
    """Put the state of `found` into the engine and into `averages`. Collective; any world size.

    Raises: CheckpointError if its parameters are not the engine's.
    """
    manifest = found.manifest
    saved = [group["parameters"] for group in manifest["groups"]]
    current = [_layout(group)["parameters"] for group in engine.groups]
    if saved != current:
        raise CheckpointError(f"{found.folder} {_first_difference(saved, current)}: give this run another folder")
    if averages is not None and not manifest["has_averages"]:
        raise CheckpointError(f"{found.folder} holds no averaged weights: set ema.length=null, or start anew")
    files = [found.folder / name for name in sorted(manifest["files"])]
    for index, group in enumerate(engine.groups):
        targets = {"master": group.master.data, **engine.moments(index)}
        if averages is not None:
            targets["ema"] = averages[index]
        for kind, target in targets.items():
            # absmax has one value a block; everything else has one an element.
            unit = QUANTISATION_BLOCK if kind.startswith("absmax") else 1
            _read_slice(files, f"{index:03d}.{kind}", target, group.padded_numel // unit, engine.rank)
    engine.restore(int(manifest["num_steps"]))


def _slices(engine: Engine, averages: Sequence[Tensor] | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for index, group in enumerate(engine.groups):
        tensors[f"{index:03d}.master"] = group.master.data
        tensors |= {f"{index:03d}.{kind}": tensor for kind, tensor in engine.moments(index).items()}
        if averages is not None:
            tensors[f"{index:03d}.ema"] = averages[index]
    return tensors


def _read_slice(files: Sequence[Path], key: str, target: Tensor, total: int, rank: Rank) -> None:
    """Fill `target` with this rank's part of the flat tensor `key`, which `files` hold one equal slice each of."""
    wanted_start = rank.index * (total // rank.world_size)
    wanted_stop = wanted_start + target.numel()
    target.zero_()
    for number, file in enumerate(files):
        with safe_open(file, framework="pt") as reader:
            stored = reader.get_slice(key)
            length = stored.get_shape()[0]
            start, stop = max(wanted_start, number * length), min(wanted_stop, (number + 1) * length)
            if start < stop:
                part = stored[start - number * length : stop - number * length]
                target[start - wanted_start : stop - wanted_start].copy_(part)


def _layout(group: FlatGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "optim_bits": group.optim_bits,
        "numel": group.numel,
        "padded_numel": group.padded_numel,
        "parameters": [
            {"name": m.name, "shape": list(m.shape), "offset": m.offset, "optim_bits": group.optim_bits}
            for m in group.members
        ],
    }


def _first_difference(saved: list[list[dict[str, Any]]], current: list[list[dict[str, Any]]]) -> str:
    """Return a clause that names the first parameter in which two layouts differ."""
    stored = {p["name"]: p for group in saved for p in group}
    wanted = {p["name"]: p for group in current for p in group}
    for name, parameter in wanted.items():
        if name not in stored:
            return f"has no parameter {name}, which this model has"
        for key in ("shape", "optim_bits"):
            if stored[name][key] != parameter[key]:
                return f"has {name} with {key} {stored[name][key]}, this run has {parameter[key]}"
    surplus = sorted(stored.keys() - wanted.keys())
    return f"has parameter {surplus[0]}, which this model has not" if surplus else "orders its parameters otherwise"


def _verified_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files: Mapping[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError) as problem:
        raise CheckpointError(f"{folder.name}: no readable manifest.json ({type(problem).__name__})") from problem
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{folder.name}: format {manifest.get('format_version')}, this version reads 1")
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder.name}: {name} is missing")
        if _sha256(folder / name) != digest:
            raise CheckpointError(f"{folder.name}: {name} does not match its hash")
    return manifest


def _write_latest(root: Path, name: str) -> None:
    temporary = root / ".LATEST.partial"
    temporary.write_text(name + "\n", encoding="utf-8")
    _flush(temporary)
    temporary.rename(root / "LATEST")
    _flush(root)


def _delete_old(root: Path, keep_last: int, newest: str) -> None:
    names = sorted((path.name for path in root.glob("step-*") if path.name <= newest), reverse=True)
    for name in names[keep_last:]:
        shutil.rmtree(root / name)


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
