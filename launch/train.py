"""Trains the stages of a run one after another, each from where it stopped."""

import gc

from distributed.preemption import StopRequest
from distributed.rank import Rank
from launch.config import RunConfig
from launch.prepare import open_shards
from launch.stage import Stage


def train(config: RunConfig, rank: Rank, stop: StopRequest) -> None:
    """Train every stage that has no final model yet. Collective.

    Raises: StoppedOnRequest once a checkpoint is saved after a signal.
    """
    shards = open_shards(config)
    for stage_config in config.stages:
        if not config.is_finished(stage_config):
            stage = Stage(config, stage_config, shards, rank, stop)
            try:
                stage.train()
            finally:
                stage.close()
            del stage
            gc.collect()  # DeepSpeed's engine refers to itself
        # The next stage trains on from this one's averaged weights.
        folder = str(config.stage_model(stage_config))
        model = config.model.model_copy(update={"base": folder, "single_file_config": None})
        config = config.model_copy(update={"model": model})
