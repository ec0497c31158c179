"""What comes before training: scanning databases, encoding them, and checking all that can be checked without a GPU."""

from collections.abc import Mapping
from pathlib import Path

import torch

from data.encode import EncodeReport, encode, refuse_stale
from data.prepare import PrepareReport, prepare
from data.shards import ShardSet
from distributed.checkpoint import newest_position
from distributed.config import refuse_impossible
from distributed.engine import training_dtype
from launch.config import RunConfig, StageConfig
from launch.facts import refuse_other_facts, stage_facts, stage_order
from launch.lineage import refuse_leaks
from launch.progress import Progress
from models.base import resolution_of
from models.saving import read_record
from models.stable_diffusion import encoder_fingerprint, load_encoder


def prepare_databases(config: RunConfig) -> PrepareReport:
    """Write the manifest of all databases of the run and the report of what was found, and return it."""
    progress = Progress("prepare", "image")
    report = prepare(config.databases, config.prepare, config.manifest_path, config.run / "images", progress.show)
    progress.close()
    report.write_html(config.quality_report)
    return report


def encode_databases(config: RunConfig) -> EncodeReport:
    """Encode the manifest into latent shards with the base model's VAE and text encoder; both leave memory after."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_encoder(config.model, device, torch.float32)
    progress = Progress("encode", "image")

    def show(done: int, total: int) -> None:
        progress.total = total
        progress.show(done)

    report = encode(config.manifest_path, encoder, config.encode, resolution_of(config.model), config.shards_path, show)
    progress.close()
    return report


def open_shards(config: RunConfig) -> ShardSet:
    """Return the run's latent shards.

    Raises: DataError unless the run's base model, at its resolution, made them, of the manifest as it is now. Shards
    that lie elsewhere may have been encoded from another run's manifest: then there is nothing to compare.
    """
    expected = {**encoder_fingerprint(config.model), "resolution": str(resolution_of(config.model))}
    shards = ShardSet.open(config.shards_path, expected)
    if config.manifest_path.exists():
        refuse_stale(config.shards_path, config.manifest_path, config.encode)
    return shards


def check_run(config: RunConfig, world_size: int) -> str:
    """Check base model, shards, splits, batch and what is there already; return what will be trained, for a person.

    Raises: the error of whatever is wrong, before a GPU is asked for.
    """
    config.batch.check_ranks(world_size)
    is_bf16 = training_dtype(config.precision) == torch.bfloat16
    refuse_impossible(config.optimizer, config.zero, is_bf16=is_bf16, has_gpu=None)
    shards = open_shards(config)
    lines = [_check_stage(config, stage, shards) for stage in config.stages]
    accumulation = config.batch.global_size // (config.batch.micro_size * world_size)
    lines.append(
        f"batch {config.batch.global_size} = {world_size} rank{'s' * (world_size > 1)} x micro batch"
        f" {config.batch.micro_size} x {accumulation} accumulated; ZeRO stage {config.zero.stage},"
        f" {config.optimizer.name}"
    )
    return "\n".join(lines)


def _check_stage(config: RunConfig, stage: StageConfig, shards: ShardSet) -> str:
    facts = stage_facts(config, stage, shards)
    already: dict[str, Mapping[str, object] | None] = {
        "model": read_record(config.stage_model(stage)),
        "checkpoints": (newest_position(config.stage_path(stage) / "checkpoints") or {}).get("facts"),
    }
    for name, found in already.items():
        if found is not None:
            refuse_other_facts(found, facts, config.stage_path(stage) / name)
    number = config.stages.index(stage)
    base = config.model.base if number == 0 else str(config.stage_model(config.stages[number - 1]))
    if number == 0 or Path(base).is_dir():  # of the stage before, if it is done
        refuse_leaks(config, stage, shards, base)
    order = stage_order(config, stage, shards)
    samples = stage.steps * config.batch.global_size
    sources = []
    for name, share in order.shares().items():
        count = order.sizes[name]
        num_held_out = len(shards.entries(name, "validation"))
        sources.append(f"{name} ({count} images, {samples * share / count:.1f} epochs, {num_held_out} to validate)")
    line = f"stage {stage.name}: {stage.steps} steps on {', '.join(sources)}"
    if stage.steps <= config.optimizer.warmup_steps:
        line += f"; note: they end within the warm-up of {config.optimizer.warmup_steps} steps"
    return line + (", finished" if config.is_finished(stage) else "")
