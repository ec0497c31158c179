"""The models that a merge is made of: what they hold, and what of them lies where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.base import ModelConfig, locate, noise_schedule, open_base
from models.controlnet import has_controlnet
from models.merging.source import FileSource, Source
from models.original_names import NAMES, PREFIXES
from models.record import read_record
from models.stable_diffusion import empty_unet
from models.weights import weight_files


@dataclass(frozen=True)
class Parent:
    """A model, named `label` by the user.

    config: of the model that has its other parts (VAE, text encoder and so on). networks: its own, by part.
    lineage: what `launch.lineage.read_lineage` is asked for. record: how it was trained, None where that is not known.
    network_configs: of networks that the model of `config` has not, as diffusers writes them.
    """

    label: str
    config: ModelConfig
    networks: Mapping[str, Source]
    prediction_type: str
    lineage: str
    record: dict[str, Any] | None
    network_configs: Mapping[str, dict[str, Any]]


def open_parent(label: str, single_file_config: str | None = None) -> Parent:
    """Return a diffusers folder, a stage's folder, a built-in model, a hub id in the cache or a single file.

    Raises: ModelError.
    """
    path = locate(label)
    # Of a stage's folder its model counts.
    is_stage = path.is_dir() and not (path / "model_index.json").is_file() and (path / "model").is_dir()
    base = str(path / "model") if is_stage else label
    config = ModelConfig(base=base, single_file_config=None if path.is_dir() else single_file_config)
    folder = open_base(config).folder
    networks: dict[str, Source] = {"unet": unet_source(label, config)}
    if has_controlnet(config):
        networks["controlnet"] = FileSource(label, weight_files(folder, "controlnet").paths)
    return Parent(
        label=label,
        config=config,
        networks=networks,
        prediction_type=noise_schedule(config).prediction_type,
        lineage=base,
        record=read_record(locate(base)) if path.is_dir() else None,
        network_configs={},
    )


def unet_source(label: str, config: ModelConfig) -> Source:
    """Return the UNet of a model."""
    base = open_base(config)
    if base.single_file is None:
        return FileSource(label, weight_files(base.folder, "unet").paths)
    part_config, prefix = base.part_config("unet"), PREFIXES["unet"]
    names = {prefix + NAMES["unet"](name, part_config): name for name in empty_unet(config).state_dict()}
    return FileSource(label, [base.single_file], names)
