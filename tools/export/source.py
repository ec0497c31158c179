"""The model that is exported: what a user named, opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.config import CHECKPOINTS
from models.base import BaseFiles, ModelConfig, locate, open_base
from models.controlnet import has_controlnet
from models.record import read_record


@dataclass(frozen=True)
class Source:
    """A located model. record: how it was trained, as its stage or merge wrote it; None where nothing is known."""

    config: ModelConfig
    base: BaseFiles
    record: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """A short name for people: of a stage's model the stage's, else that of the folder, the file or on the hub."""
        given = Path(self.config.base)
        if given.name == "model" and (given.parent / CHECKPOINTS).is_dir():
            return given.parent.name
        return self.config.base if not given.exists() else given.resolve().stem

    @property
    def has_controlnet(self) -> bool:
        """Whether a ControlNet belongs to it."""
        return has_controlnet(self.config)


def open_source(source: str, single_file_config: str | None) -> Source:
    """Return the model that `source` names.

    source: a diffusers folder, the folder of a stage (its model is meant), a hub id in the local cache, the name of a
    built-in model, or a single .safetensors file, whose architecture single_file_config gives, as in a configuration.
    Raises: ModelError if it is not here, or not whole.
    """
    path = locate(source)
    if not (path / "model_index.json").is_file() and (path / "model" / "model_index.json").is_file():
        source = str(path / "model")
    config = ModelConfig(base=source, single_file_config=single_file_config)
    base = open_base(config)
    return Source(config, base, read_record(base.folder) if base.single_file is None else None)
