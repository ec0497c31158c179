"""Trains the stages of a run one after another, each from where it stopped."""

import errno
import gc
from contextlib import ExitStack
from functools import partial

import torch

from data.errors import DataError
from data.node_copy import copied_to_node
from data.shards import ShardSet
from distributed.placement import training_device
from distributed.rank import Rank, from_first_rank, raise_together
from distributed.stop_request import StoppedOnRequest, StopRequest
from launch.config import RunConfig
from launch.dry_run import checked_shards
from launch.facts import stage_facts, stage_steps
from launch.forgetting_report import tell_matrix, write_matrix
from launch.job import write_job
from launch.lineage import refuse_leaks, write_lineage
from launch.lock import locked
from launch.merged_start import write_merged_start
from launch.record import write_record
from launch.stage import Stage


def train(config: RunConfig, rank: Rank, stop: StopRequest, until: str | None = None) -> None:
    """Train every stage that has no final model yet. Collective.

    until: name of the last stage that is trained; None: of all of them.
    Raises: StoppedOnRequest once a checkpoint is saved after a signal; ConfigError if another process trains there;
    RuntimeError that says what to go on from if the disk is full.
    """
    with ExitStack() as held:
        from_first_rank(rank, lambda: held.enter_context(locked(config.run)))
        try:
            _train_stages(config, rank, stop, until)
        except OSError as error:  # of a log, a curve or a merge: what a checkpoint meets is told by its writer
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            mend = "make room, then run the same command again"
            raise RuntimeError(f"could not write to {config.run}: {error}; {stop.newest_save}: {mend}") from error


def _on_own_disk(config: RunConfig, shards: ShardSet, rank: Rank) -> ShardSet:
    """Return the shards, or their copy on this rank's node where the configuration wants one. Collective."""
    if config.loader.copy_to is None:
        return shards
    error = None
    try:
        copy = copied_to_node(shards.path, config.loader.copy_to)
        shards = ShardSet.open(copy, check_hashes=config.loader.check_hashes)
    except (DataError, OSError) as failure:
        error = str(failure)
    raise_together(error, rank, DataError)
    return shards


def _train_stages(config: RunConfig, rank: Rank, stop: StopRequest, until: str | None) -> None:
    # Hashing the base model takes seconds on a slow file system: the first rank does it, here and for the facts.
    shards, _ = from_first_rank(rank, lambda: checked_shards(config, torch.cuda.is_available()))
    shards = _on_own_disk(config, shards, rank)
    stages = config.stages_until(until)
    is_first = True
    for number, stage_config in enumerate(stages):
        # Alone too in looking for the model: another node's failed look would hide it there, once it is written, for as
        # long as NFS remembers what was not found.
        if from_first_rank(rank, partial(config.is_finished, stage_config)):
            continue
        facts = from_first_rank(rank, partial(stage_facts, config, stage_config, shards))
        # A stage trains on from the averaged weights of an earlier one.
        model, optimizer = config.stage_base(stage_config), config.stage_optimizer(stage_config)
        from_first_rank(rank, partial(write_merged_start, config, stage_config))
        from_first_rank(rank, partial(refuse_leaks, config, stage_config, shards, model.base))
        started = config.model_copy(update={"model": model, "optimizer": optimizer})
        stage = Stage(started, stage_config, shards, facts, rank, stop)
        try:
            if rank.is_first:
                write_lineage(config, stage_config, shards, model.base)
                write_record(config)
                num_steps = {each.name: stage_steps(config, each, shards) for each in config.stages}
                write_job(config.run, stage_config.name, num_steps, rank.world_size)
            stage.train(is_first=is_first)
        finally:
            stage.close()
        is_first = False
        del stage
        gc.collect()
        from_first_rank(rank, partial(write_matrix, config))
        # Asked for since the last step, while the model was validated and written.
        if stop.is_agreed(training_device(rank)) and number + 1 < len(stages):
            raise StoppedOnRequest
    from_first_rank(rank, partial(tell_matrix, config))
