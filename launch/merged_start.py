"""The merge of earlier stages that a stage starts from: the mean of their UNets, with the lineage of all of them."""

import shutil

from launch.config import RunConfig
from launch.lineage import merged_lineage
from launch.record import versions
from launch.stage_config import StageConfig
from models.merging.folder import Merge
from models.merging.parent import open_parent
from models.merging.recipe import make_recipe
from models.record import read_record, record_sha256


def write_merged_start(config: RunConfig, stage: StageConfig) -> None:
    """Write what a stage starts from, where that is a merge that is not there yet; the stages of it are finished."""
    starts = config.starts_of(stage)
    folder = config.stage_start(stage)
    record = {"shares": {start.name: weight for start, weight in starts}, "of": _versions_of(config, stage)}
    if len(starts) < 2 or ((found := read_record(folder)) and {key: found.get(key) for key in record} == record):
        return
    models = {str(config.stage_model(start)): weight for start, weight in starts}
    recipe = make_recipe(sources=list(models), weights=list(models.values()), part="unet")
    merge = Merge(recipe, [open_parent(model) for model in models])
    shutil.rmtree(folder, ignore_errors=True)  # of stages that have been trained on since
    merge.write(folder, {**record, **versions()}, merged_lineage(list(models)))


def _versions_of(config: RunConfig, stage: StageConfig) -> dict[str, str | None]:
    """Return what tells each of the merged models from one that was trained anew, or further."""
    return {start.name: record_sha256(config.stage_model(start)) for start, _ in config.starts_of(stage)}
