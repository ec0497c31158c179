"""The images that a stage's model has learnt from."""

from collections.abc import Sequence

from data.errors import DataError
from data.manifest import ManifestRow
from data.shards import ShardSet
from launch.config import RunConfig
from launch.facts import stage_parts
from launch.run_shards import shards_folder
from launch.stage_config import StageConfig


def learnt_rows(config: RunConfig, stage: StageConfig, rows: Sequence[ManifestRow], database: str) -> list[ManifestRow]:
    """Return a database's training images that a stage has seen, or a stage that it goes on from, in their order.

    Of a stage with a `fraction` they are those that training takes, by its own function. rows: of the manifest.
    Raises: DataError if the shards that tell them have other images than the manifest.
    """
    training = [row for row in rows if row.database == database and row.split == "train"]
    stages = [each for each in config.stages_behind(stage) if database in each.trained_on]
    if any(each.fraction == 1 or database in each.replay for each in stages):
        return training
    shards = ShardSet.open(shards_folder(config))
    entries = shards.entries(database, "train")
    seen = {entries[int(number)].id for each in stages for number in stage_parts(config, each, shards)[database]}
    if unknown := seen - {row.id for row in training}:
        raise DataError(
            f"{shards.path} has {sorted(unknown)[0]} as a training image, {config.manifest_path} has not: run"
            " `sonoshard encode` again, or take the manifest that the stage was trained with"
        )
    return [row for row in training if row.id in seen]
