"""What a run was made with, written beside it before step 1: the resolved configuration, versions, the commit."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from data.hints import hint_colours
from data.manifest import PALETTE
from launch.config import RunConfig
from launch.git import git_says, make_run_folder
from launch.snapshot import COMMIT_FILE
from launch.stage_config import StageConfig
from launch.training_data import KEY as TRAINING
from launch.training_data import Training
from models.record import HINT_COLOURS

_LIBRARIES = ("torch", "deepspeed", "bitsandbytes", "diffusers", "peft", "transformers", "webdataset", "numpy")


def write_record(config: RunConfig) -> Path:
    """Write RUN/config.yaml (loadable as a configuration) and RUN/versions.json; return the former."""
    make_run_folder(config.run)
    _replace(config.run / "versions.json", json.dumps(versions(), indent=1) + "\n")
    return _replace(config.run / "config.yaml", config_text(config))


def config_text(config: RunConfig) -> str:
    """Return the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def model_record(
    config: RunConfig, stage: StageConfig, facts: Mapping[str, Any], steps: int, base: str, training: Training | None
) -> dict[str, Any]:
    """Return what stands beside a model that a stage made of `base` in so many steps.

    training: what it was trained on, earlier stages included. None: nobody can tell any more.
    """
    record = {"steps": steps, "epochs": stage.epochs, **facts, "base": base, **versions()}
    record["sampling"] = config.preview.sampling.model_dump(mode="json")
    if training is not None:
        record[TRAINING] = asdict(training)
    if stage.early_stop:
        record["early_stop"] = stage.early_stop.model_dump()
    if stage.has_hints:
        record[HINT_COLOURS] = hint_colours(training.palette if training else PALETTE)
    return record


def versions() -> dict[str, Any]:
    """Return the versions of Python and the libraries, and this checkout's git commit."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
        "commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Return the checkout's commit, with `-dirty` after it where files were changed; None outside a checkout.

    A job's copy of the code has it in a file, and is not to be taken for the checkout that it may lie in.
    """
    copied = Path(__file__).parent.parent / COMMIT_FILE
    if copied.exists():
        return copied.read_text(encoding="utf-8").strip()
    return git_says(Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40")


def _replace(path: Path, text: str) -> Path:
    # Several jobs of one run may start together: each writes a name of its own, and the last rename stays.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)
    return path
