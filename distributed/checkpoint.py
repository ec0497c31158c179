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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distributed.engine import Engine, FlatGroup
from distributed.errors import CheckpointError
from distributed.optimizer import QUANTISATION_BLOCK
from distributed.rank import Rank, raise_together

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
    An older folder of the same step, which was damaged or it would have been resumed from, is replaced.
    Raises: RuntimeError on every rank if any rank could not write; earlier checkpoints are untouched.
    """
    rank, final = engine.rank, step_folder(root, int(position["step"]))
    partial = root / f".{final.name}.partial"
    file_name = f"slices-{rank.index:05d}-of-{rank.world_size:05d}.safetensors"
    digests: list[tuple[str, str]] = [("", "")] * rank.world_size
    with _failing_together(rank, partial):
        if rank.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    with _failing_together(rank, partial):
        save_file(_slices(engine, averages), partial / file_name)
        _flush(partial / file_name)
        digests[rank.index] = (file_name, _sha256(partial / file_name))
    dist.all_gather_object(digests, digests[rank.index])
    manifest = {
        "format_version": FORMAT_VERSION,
        "world_size": rank.world_size,
        "num_steps": engine.num_steps,
        "has_averages": averages is not None,
        "position": position,
        "groups": [_layout(group) for group in engine.groups],
        "files": dict(digests),
        "versions": {"torch": torch.__version__},
    }
    with _failing_together(rank, partial):
        if rank.is_first:
            _publish(partial, final, manifest)
            _delete_old(root, keep_last, newest=final.name)
    return final


@contextmanager
def _failing_together(rank: Rank, partial: Path) -> Iterator[None]:
    """Turn a failure to write of any rank into a RuntimeError of every rank, and take the partial folder away."""
    error = None
    try:
        yield
    except (OSError, SafetensorError) as failure:
        error = f"could not write the checkpoint {partial}: {failure}; earlier ones beside it are whole"
    try:
        raise_together(error, rank)
    except RuntimeError:
        if rank.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _publish(partial: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Give a folder of complete slices its manifest, its final name and the name in LATEST."""
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _flush(partial / "manifest.json")
    _flush(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _flush(final.parent)
    _write_latest(final.parent, final.name)


def newest_position(root: Path) -> dict[str, Any] | None:
    """Return the position of the checkpoint that LATEST names, unverified, at once; None where there is none."""
    try:
        name = (root / "LATEST").read_text(encoding="utf-8").strip()
        position: dict[str, Any] = json.loads((root / name / "manifest.json").read_text(encoding="utf-8"))["position"]
    except (OSError, ValueError, KeyError):
        return None  # `find_checkpoint` says what is wrong, if anything is
    return position


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
        shutil.rmtree(root / name, ignore_errors=True)


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
