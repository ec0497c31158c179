"""The models that a merge is made of: what they hold, and what of them lies where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.base import ModelConfig, locate, noise_schedule, open_base
from models.controlnet import empty_controlnet, has_controlnet
from models.errors import ModelError
from models.merging.single_file_source import lora_source, part_source, parts_of
from models.merging.source import FileSource, Source
from models.record import read_record
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

    single_file_config: the architecture of a single file, and all that a ControlNet's or LoRA's does not hold.
    Raises: ModelError.
    """
    path = locate(label)
    if path.is_file():
        return _open_file(label, path, single_file_config)
    # Of a stage's folder its model counts.
    is_stage = not (path / "model_index.json").is_file() and (path / "model").is_dir()
    base = str(path / "model") if is_stage else label
    config = ModelConfig(base=base)
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
        record=read_record(locate(base)),
        network_configs={},
    )


def _open_file(label: str, file: Path, single_file_config: str | None) -> Parent:
    config = ModelConfig(base=label, single_file_config=single_file_config)
    folder = ModelConfig(base=open_base(config).name)
    networks: dict[str, Source] = {}
    configs = {}
    parts = parts_of(file)
    if "unet" in parts:
        networks["unet"] = part_source(label, file, "unet", folder)
    elif "controlnet" in parts:
        networks["controlnet"] = part_source(label, file, "controlnet", folder)
        configs["controlnet"] = json.loads(empty_controlnet(folder).to_json_string())
    elif "lora" in parts:
        networks["unet"] = lora_source(label, file, unet_source(folder.base, folder))
    else:
        raise ModelError(f"{file} holds a {' and a '.join(parts)} alone: a UNet, a ControlNet or a LoRA is needed")
    return Parent(
        label=label,
        config=config if "unet" in parts else folder,
        networks=networks,
        prediction_type=noise_schedule(config if "unet" in parts else folder).prediction_type,
        lineage=label if "unet" in parts else folder.base,
        record=None,
        network_configs=configs,
    )


def unet_source(label: str, config: ModelConfig) -> Source:
    """Return the UNet of a model."""
    base = open_base(config)
    if base.single_file is None:
        return FileSource(label, weight_files(base.folder, "unet").paths)
    return part_source(label, base.single_file, "unet", ModelConfig(base=base.name))
