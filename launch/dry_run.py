"""All that can be checked of a run before a GPU is asked for."""

from collections.abc import Mapping
from pathlib import Path

import torch

from data.shards import ShardSet
from distributed.checkpoint import newest_position
from distributed.config import refuse_impossible
from distributed.errors import EngineError
from distributed.placement import training_dtype
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.facts import refuse_other_facts, stage_facts, stage_order, stage_steps
from launch.lineage import refuse_leaks
from launch.run_shards import open_shards
from launch.stage_config import StageConfig
from models.record import read_record


def check_run(config: RunConfig, world_size: int, on_gpu: bool | None = None) -> str:
    """Check base model, shards, splits, batch and what is there already; return what will be trained, for a person.

    on_gpu: whether it is trained on a GPU. None: not known, as on a login node, where it is asked about one.
    Raises: the error of whatever is wrong, before a GPU is asked for.
    """
    config.batch.check_ranks(world_size)
    _, lines = checked_shards(config, on_gpu)
    accumulation = config.batch.global_size // (config.batch.micro_size * world_size)
    lines.append(
        f"batch {config.batch.global_size} = {world_size} rank{'s' * (world_size > 1)} x micro batch"
        f" {config.batch.micro_size} x {accumulation} accumulated; ZeRO stage {config.zero.stage},"
        f" {config.optimizer.name}"
    )
    if on_gpu is None and any(config.stage_optimizer(stage).paged for stage in config.stages):
        lines.append("note: optimizer.paged=true needs a GPU where this is trained; this machine has none")
    return "\n".join(lines)


def checked_shards(config: RunConfig, on_gpu: bool | None) -> tuple[ShardSet, list[str]]:
    """Return the run's shards, and what each stage will train, once everything that can be checked of each has been.

    A late stage must not fail after days. on_gpu: as in `check_run`. Raises: the error of whatever is wrong.
    """
    _refuse_impossible_stages(config, on_gpu)
    shards = open_shards(config)
    return shards, [_check_stage(config, stage, shards) for stage in config.stages]


def _refuse_impossible_stages(config: RunConfig, on_gpu: bool | None) -> None:
    """Raise ConfigError if any stage's settings of the engine do not go together. on_gpu: as in `check_run`."""
    is_bf16 = training_dtype(config.precision, on_gpu=on_gpu is not False) == torch.bfloat16
    for stage in config.stages:
        try:
            refuse_impossible(config.stage_optimizer(stage), config.zero, is_bf16=is_bf16, has_gpu=on_gpu)
        except EngineError as error:
            raise ConfigError(str(error)) from error


def _refuse_without_masks(stage: StageConfig, shards: ShardSet) -> None:
    """Raise ConfigError if a stage whose network sees masks has a database without any."""
    for name in stage.databases if stage.has_hints else ():
        if not shards.entries(name, "train").num_hints():
            raise ConfigError(
                f"stage {stage.name} trains a ControlNet, but no training image of {name} has a mask: take {name} out"
                " of its databases"
            )


def _check_stage(config: RunConfig, stage: StageConfig, shards: ShardSet) -> str:
    """Return what a stage will train, for a person. Raises: the error of whatever is wrong with it."""
    _refuse_without_masks(stage, shards)
    facts = stage_facts(config, stage, shards)
    model, checkpoints = config.stage_model(stage), config.stage_checkpoints(stage)
    already: dict[Path, Mapping[str, object] | None] = {
        model: read_record(model),
        checkpoints: (newest_position(checkpoints) or {}).get("facts"),
    }
    for folder, found in already.items():
        if found is not None:
            refuse_other_facts(found, facts, folder)
    base = config.stage_base(stage).base
    if not config.starts_of(stage) or Path(base).is_dir():  # of an earlier stage, if that is done
        refuse_leaks(config, stage, shards, base)
    order = stage_order(config, stage, shards)
    steps = stage_steps(config, stage, shards)
    samples = steps * config.batch.global_size
    sources = []
    for name, share in order.shares().items():
        count = order.sizes[name]
        num_held_out = len(shards.entries(name, "validation"))
        sources.append(f"{name} ({count} images, {samples * share / count:.1f} epochs, {num_held_out} to validate)")
    line = f"stage {stage.name}: {steps} steps on {', '.join(sources)}"
    if stage.trains != "all":
        line += f"; of the UNet {stage.trains} trains"
    if steps <= (warmup_steps := config.stage_optimizer(stage).warmup_steps):
        line += f"; note: they end within the warm-up of {warmup_steps} steps"
    return line + (", finished" if config.is_finished(stage) else "")
