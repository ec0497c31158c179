"""The averaged weights of a checkpoint as a diffusers folder, of any length, on one process and without an engine."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import DataError
from data.shards import ShardSet
from distributed.checkpoint import Found, find_checkpoint, named_checkpoint, verified_manifest
from distributed.config import MAX_AVERAGE_LENGTH
from distributed.ema import average_length, average_name
from distributed.errors import CheckpointError
from distributed.stored_state import StoredState
from distributed.synthesis import Profile, synthesise
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.facts import facts_of_part, refuse_other_facts
from launch.lineage import files_of_lineage
from launch.networks import empty_trained
from launch.record import model_record
from launch.run_shards import shards_folder
from launch.stage_config import StageConfig
from launch.training_data import KEY as TRAINING
from launch.training_data import Training, training_of, training_until
from models.base import noise_schedule
from models.record import read_record
from models.saving import save_pipeline
from models.trained_part import lora_files, whole_weights

# How far the profile of an average that is put together may be from the one that was asked for, relative.
MAX_PROFILE_ERROR = 0.02


@dataclass(frozen=True)
class Part:
    """One kept average, and how much it counts in what is written."""

    checkpoint: Found
    name: str
    coefficient: float = 1.0

    @cached_property
    def stored(self) -> StoredState:
        """The checkpoint's slices."""
        return StoredState(self.checkpoint.folder, self.checkpoint.manifest["groups"])

    @property
    def profile(self) -> Profile:
        """What it averages over. Skipped steps do not count, as they do not for the average."""
        return Profile(average_length(self.name), self.checkpoint.manifest["num_steps"])


def write_average(
    config: RunConfig, *, stage_name: str | None, length: float | None, checkpoint: str, out: Path | None
) -> str:
    """Write a diffusers folder of one average and return what it is, for a person.

    stage_name: None for the last. length: None for the first of ema.lengths. checkpoint: LATEST, BEST or a folder's
    name. out: None for averages/LENGTH in the stage's folder; it must not be there yet.
    Raises: ConfigError, CheckpointError if the average cannot be had.
    """
    stage = _stage(config, stage_name)
    length = _length(config, length)
    folder = out or config.stage_path(stage) / "averages" / f"{length:g}"
    if folder.exists():
        raise ConfigError(f"{folder} is there already: remove it, or give another folder with --out")
    root = config.stage_checkpoints(stage)
    found = _checkpoint(root, checkpoint)
    for line in found.skipped:
        print(f"skipped: {line}")
    expected = {"stage": stage.name, "prediction_type": noise_schedule(config.model).prediction_type}
    expected |= facts_of_part(stage)
    refuse_other_facts(found.position["facts"], expected, found.folder)
    parts, error = [Part(found, average_name(length))], 0.0
    if average_name(length) not in found.manifest["averages"]:
        parts, error = _synthesised(root, found, length)
    if not torch.cuda.is_available():
        # To save a text encoder transformers imports DeepSpeed, which says on stdout that it looked for a GPU in vain.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    trained = summed_weights(config, stage, parts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    weights = whole_weights(config.stage_base(stage), trained, stage.trains, stage.lora)
    files = files_of_lineage(config.stage_path(stage)) | lora_files(trained, stage.trains, stage.lora)
    record, network = _record(config, stage, found, length, parts, error), stage.network
    save_pipeline(config.stage_base(stage), weights, folder, record, files, network)
    return (
        f"average of length {length:g} in {found.folder.name}: {_origin(parts, error)}\n"
        f"{folder}   (a diffusers folder; a run starts from it with model.base={folder})"
    )


def _stage(config: RunConfig, name: str | None) -> StageConfig:
    if name is None:
        return config.stages[-1]
    for stage in config.stages:
        if stage.name == name:
            return stage
    raise ConfigError(f"no stage {name!r}: this configuration has {', '.join(stage.name for stage in config.stages)}")


def _length(config: RunConfig, length: float | None) -> float:
    if length is None:
        if not config.ema.lengths:
            raise ConfigError("ema.lengths=[] names no length to write: give one with --length, such as 0.1")
        return config.ema.lengths[0]
    if not 0 < length < MAX_AVERAGE_LENGTH:
        raise ConfigError(f"--length {length:g} is not between 0 and {MAX_AVERAGE_LENGTH}: give a fraction such as 0.1")
    return length


def _checkpoint(root: Path, label: str) -> Found:
    """Return the checkpoint that was asked for, verified by hash; for LATEST the newest that is whole."""
    names = sorted(path.name for path in root.glob("step-*"))
    if not names:
        raise ConfigError(f"no checkpoint in {root}: train this stage first")
    if label == "LATEST":
        newest = find_checkpoint(root)
        assert newest is not None, "there are some"
        return newest
    best = named_checkpoint(root, "BEST")
    name = best.name if best and label == "BEST" else label
    if name not in names:
        there = ["LATEST", *(["BEST"] if best else []), *names]
        raise ConfigError(f"no checkpoint {label} in {root}: give one of {', '.join(there)}")
    return Found(root / name, verified_manifest(root / name), ())


def _synthesised(root: Path, found: Found, length: float) -> tuple[list[Part], float]:
    """Return what an average of `length` at the step of `found` is put together from, and its profile's error.

    Raises: ConfigError where nothing near enough can be put together.
    """
    kept = [Part(whole, name) for whole in _whole_checkpoints(root, found) for name in whole.manifest["averages"]]
    if not kept:
        raise ConfigError(f"{root} holds no average: with ema.lengths=[] there is only the model of the last step")
    step = found.manifest["num_steps"]
    synthesis = synthesise([part.profile for part in kept], Profile(length, step))
    if synthesis.error > MAX_PROFILE_ERROR:
        raise ConfigError(
            f"an average of length {length:g} at step {step} would miss its profile by {synthesis.error:.1%}, more than"
            f" {MAX_PROFILE_ERROR:.0%}, if put together from what {root} holds ({_listed(kept)}): choose a length that"
            " it holds or one nearer to them, or train with this one in ema.lengths"
        )
    weighted = zip(kept, synthesis.coefficients, strict=True)
    return [Part(part.checkpoint, part.name, coefficient) for part, coefficient in weighted], synthesis.error


def _whole_checkpoints(root: Path, found: Found) -> Iterator[Found]:
    """Yield every checkpoint whose files match their hashes; `found` was verified before."""
    for folder in sorted(root.glob("step-*")):
        if folder == found.folder:
            yield found
            continue
        try:
            yield Found(folder, verified_manifest(folder), ())
        except CheckpointError as damage:
            if str(damage) not in found.skipped:  # of which was told already
                print(f"skipped: {damage}")


def summed_weights(config: RunConfig, stage: StageConfig, parts: list[Part]) -> dict[str, Tensor]:
    """Return the sum of `parts` by parameter that trains, float32; only one parameter is in memory more than once.

    Raises: ConfigError if the checkpoints are not of the configuration's model.
    """
    trained = empty_trained(config.stage_base(stage), stage)
    shapes = {name: parameter.shape for name, parameter in trained.named_parameters() if parameter.requires_grad}
    for part in parts:
        stored = {member.name: torch.Size(member.shape) for group in part.stored.layouts for member in group.members}
        different = sorted(name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name))
        if different:
            raise ConfigError(
                f"{part.checkpoint.folder} is of another model than {config.model.base}: they differ in {different[0]}"
            )
    return {name: _parameter(parts, name) for name in shapes}


def _parameter(parts: list[Part], name: str) -> Tensor:
    if len(parts) == 1 and parts[0].coefficient == 1:
        return parts[0].stored.parameter(name, parts[0].name)
    # In float64: coefficients of both signs take much of what they add away again.
    first, *others = parts
    total = first.stored.parameter(name, first.name).double() * first.coefficient
    for part in others:
        total.add_(part.stored.parameter(name, part.name).double(), alpha=part.coefficient)
    return total.float()


def _record(
    config: RunConfig, stage: StageConfig, found: Found, length: float, parts: list[Part], error: float
) -> dict[str, Any]:
    """Return what stands beside the model: what the stage's own model has, and which average it is."""
    base = config.stage_base(stage).base
    made_of = [
        {"checkpoint": part.checkpoint.folder.name, "average": part.name, "coefficient": part.coefficient}
        for part in parts
    ]
    average = {"length": length, "checkpoint": found.folder.name, "made_of": made_of, "profile_error": error}
    record = model_record(
        config, stage, found.position["facts"], found.position["step"], base, _training(config, stage, base)
    )
    return {**record, "average": average}


def _training(config: RunConfig, stage: StageConfig, base: str) -> Training | None:
    """Return what the stage trains on: its finished model knows, or else the shards; None where both are gone."""
    finished = read_record(config.stage_model(stage))
    if finished is not None and TRAINING in finished:
        return training_of(finished, stage.name)
    try:
        return training_until(config, stage, ShardSet.open(shards_folder(config)), base)
    except DataError:
        return None


def _origin(parts: list[Part], error: float) -> str:
    if len(parts) == 1:
        return "as it was kept"
    return f"put together from {_listed(parts)}; its profile is met to within {error:.2%}"


def _listed(parts: list[Part]) -> str:
    """Return the averages by their checkpoints, such as `step-00000400: ema@0.05, ema@0.1`."""
    names: dict[str, list[str]] = {}
    for part in parts:
        names.setdefault(part.checkpoint.folder.name, []).append(part.name)
    return "; ".join(f"{folder}: {', '.join(averages)}" for folder, averages in names.items())
