"""A run's latent shards: where they lie, and whether they are what its config says."""

from pathlib import Path

from data.encode import refuse_stale
from data.errors import DataError
from data.shards import ShardSet
from launch.config import RunConfig
from models.base import resolution_of
from models.stable_diffusion import encoder_fingerprint


def shards_folder(config: RunConfig) -> Path:
    """Return the folder of the run's shards at its resolution. Raises: DataError if there are only others."""
    folder = config.shards_path / str(resolution_of(config.model))
    others = sorted((int(path.name) for path in config.shards_path.glob("*") if path.name.isdecimal()), reverse=True)
    if others and not folder.is_dir():
        there_are = ", ".join(map(str, others))
        raise DataError(
            f"{config.shards_path} has no shards of {folder.name} pixels; it has {there_are}: set model.resolution to"
            f" one of them, or run `sonoshard encode` with encode.resolutions=[{folder.name}]"
        )
    return folder


def open_shards(config: RunConfig) -> ShardSet:
    """Return the run's latent shards.

    Raises: DataError unless the run's base model, at its resolution, made them, of the manifest as it is now. Shards
    that lie elsewhere may have been encoded from another run's manifest: then there is nothing to compare.
    """
    expected = {**encoder_fingerprint(config.model), "resolution": str(resolution_of(config.model))}
    folder = shards_folder(config)
    shards = ShardSet.open(folder, expected, check_hashes=config.loader.check_hashes)
    if config.manifest_path.exists():
        refuse_stale(folder, config.manifest_path, config.encode)
    return shards
