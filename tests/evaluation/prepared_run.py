"""A run whose manifest is made, of a configuration that a test writes down."""

from pathlib import Path

from launch.config import RunConfig, load_config
from launch.prepare import prepare_databases


def prepared_run(folder: Path, text: str) -> RunConfig:
    """Return the run that `text` configures, prepared. text: with {folder} where `folder` is meant."""
    path = folder / "config.yaml"
    path.write_text(text.format(folder=folder), encoding="utf-8")
    config = load_config(path)
    prepare_databases(config)
    return config
