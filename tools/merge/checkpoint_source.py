"""A run's checkpoint as something to merge: its slices read by parameter, without an engine, LoRA folded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from distributed.checkpoint import Found, verified_manifest
from distributed.ema import average_length, average_name
from distributed.stored_state import StoredState
from launch.config import RunConfig, load_config
from launch.errors import ConfigError
from launch.facts import facts_of_part, refuse_other_facts
from launch.record import model_record
from launch.stage_config import StageConfig
from models.controlnet import empty_controlnet
from models.merging.parent import Parent, open_parent, unet_source
from models.merging.partly_trained import PartlyTrained
from models.merging.source import Source, Stored

MANIFEST = "manifest.json"
RAW, AVERAGE = "raw", "ema"


def open_model(label: str, single_file_config: str | None = None) -> Parent:
    """Return a model or a checkpoint by what the user calls it: see the recipe's `sources`.

    Raises: ConfigError, ModelError, CheckpointError.
    """
    path, _, which = label.rpartition("@") if "@" in label else (label, "", AVERAGE)
    folder = Path(path).expanduser()
    if (folder / MANIFEST).is_file():
        return _open_checkpoint(label, folder, which)
    if path != label and not Path(label).exists():
        raise ConfigError(
            f"{label}: {path} is no checkpoint, of which alone @{which} could choose the weights; give"
            " RUN/stages/STAGE/checkpoints/step-00000100 or the like, or leave @ out"
        )
    return open_parent(label, single_file_config)


def _open_checkpoint(label: str, folder: Path, which: str) -> Parent:
    config, stage = _owner(folder)
    found = Found(folder, verified_manifest(folder), ())
    facts = found.position["facts"]
    refuse_other_facts(facts, {"stage": stage.name, **facts_of_part(stage)}, folder)
    kind = _kind(which, found)
    slices = CheckpointSource(label, found, kind)
    base = config.stage_base(stage)
    if stage.network == "controlnet":
        networks: dict[str, Source] = {"unet": unet_source(label, base), "controlnet": slices}
    elif stage.trains == "all":
        networks = {"unet": slices}
    else:
        networks = {"unet": PartlyTrained(label, unet_source(label, base), slices, stage.lora)}
    record = model_record(config, stage, facts, found.position["step"], base.base, None)
    configs = {"controlnet": json.loads(empty_controlnet(base).to_json_string())} if stage.has_hints else {}
    return Parent(
        label=label,
        config=base,
        networks=networks,
        prediction_type=facts["prediction_type"],
        lineage=str(config.stage_path(stage)),
        record={**record, "checkpoint": folder.name, "checkpoint_weights": kind},
        network_configs=configs,
    )


def _owner(folder: Path) -> tuple[RunConfig, StageConfig]:
    """Return the run and the stage that a checkpoint is of."""
    folder = folder.resolve()
    if len(folder.parents) > 3 and (path := folder.parents[3] / "config.yaml").is_file():
        config = load_config(path).model_copy(update={"run": folder.parents[3]})  # it may have been moved
        for stage in config.stages:
            if config.stage_path(stage) == folder.parents[1]:
                return config, stage
    raise ConfigError(
        f"{folder} is no checkpoint within its run (RUN/stages/STAGE/checkpoints/step-00000100, and the run's"
        " config.yaml, which says what was trained): give it where the run left it"
    )


def _kind(which: str, found: Found) -> str:
    """Return the name, within the checkpoint, of the weights that were asked for."""
    averages: list[str] = found.manifest["averages"]
    if which == RAW or (which == AVERAGE and not averages):
        return "master"
    if which == AVERAGE:
        return averages[0]
    name = _named_by_length(which)
    if name in averages:
        return name
    there = ", ".join([f"@{RAW}", *(f"@{AVERAGE}={average_length(average):g}" for average in averages)])
    raise ConfigError(f"{found.folder} has no weights @{which}: give one of {there}")


def _named_by_length(which: str) -> str | None:
    """Return the name, within a checkpoint, of the average that `ema=LENGTH` means; None where it means none."""
    kind, _, length = which.partition("=")
    try:
        return average_name(float(length)) if kind == AVERAGE else None
    except ValueError:
        return None


class CheckpointSource:
    """One kind of weights in a checkpoint's slices: all parameters that trained."""

    def __init__(self, label: str, found: Found, kind: str) -> None:
        """Open the slices. kind: `master`, or an average's name."""
        self.label = label
        self._found, self._kind = found, kind
        self._state = StoredState(found.folder, found.manifest["groups"])

    @cached_property
    def tensors(self) -> Mapping[str, Stored]:
        """The parameters by their names; they are read as float32, whatever they are stored as."""
        members = [member for layout in self._state.layouts for member in layout.members]
        return {member.name: Stored("F32", tuple(member.shape)) for member in members}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a parameter, 1-D float32."""
        return self._state.elements(name, self._kind, start, stop)

    def sha256(self) -> str:
        """Return the sha256 of the manifest, which has those of all slices: they were compared on opening."""
        return hashlib.sha256((self._found.folder / MANIFEST).read_bytes()).hexdigest()
