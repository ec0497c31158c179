"""What comes before training: scanning databases, encoding them, and checking all that can be checked without a GPU."""

from collections.abc import Mapping
from pathlib import Path

import torch

from data.encode import encode, refuse_stale
from data.errors import DataError
from data.prepare import PrepareReport, prepare
from data.shards import ShardSet
from distributed.checkpoint import newest_position
from distributed.config import refuse_impossible
from distributed.errors import EngineError
from distributed.placement import training_dtype
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.facts import refuse_other_facts, stage_facts, stage_order, stage_steps
from launch.lineage import refuse_leaks
from launch.progress import Progress
from launch.stage_config import StageConfig
from models.base import resolution_of
from models.record import read_record
from models.stable_diffusion import encoder_fingerprint, load_encoder


def prepare_databases(config: RunConfig) -> PrepareReport:
    """Write the manifest of all databases of the run and the report of what was found, and return it."""
    progress = Progress("prepare", "image")
    report = prepare(config.databases, config.prepare, config.manifest_path, config.run / "images", progress.show)
    progress.close()
    report.write_html(config.quality_report)
    return report


def encode_databases(config: RunConfig, part: int = 0, num_parts: int = 1, process: int = 0) -> str:
    """Encode the manifest into latent shards with the base model's VAE and text encoder; both leave memory after.

    part, num_parts: of the shards of each resolution. process: of those on this machine; it picks the GPU, and the
    first one shows how far it is. Returns what was made, a line a resolution.
    """
    device = torch.device("cuda", process % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(config.model, device, torch.float32)
    lines = []
    for resolution in config.encode.resolutions or [resolution_of(config.model)]:
        progress = Progress(f"encode {resolution} px", "image")

        def show(done: int, total: int, progress: Progress = progress) -> None:
            progress.total = total
            progress.show(done)

        report = encode(
            config.manifest_path,
            encoder,
            config.encode,
            resolution,
            config.shards_path / str(resolution),
            show if process == 0 else None,
            part=part,
            num_parts=num_parts,
        )
        progress.close()
        lines.append(str(report))
    return "\n".join(lines)


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


def check_run(config: RunConfig, world_size: int, on_gpu: bool | None = None) -> str:
    """Check base model, shards, splits, batch and what is there already; return what will be trained, for a person.

    on_gpu: whether it is trained on a GPU. None: not known, as on a login node, where it is asked about one.
    Raises: the error of whatever is wrong, before a GPU is asked for.
    """
    config.batch.check_ranks(world_size)
    refuse_impossible_stages(config, on_gpu)
    shards = open_shards(config)
    lines = [_check_stage(config, stage, shards) for stage in config.stages]
    accumulation = config.batch.global_size // (config.batch.micro_size * world_size)
    lines.append(
        f"batch {config.batch.global_size} = {world_size} rank{'s' * (world_size > 1)} x micro batch"
        f" {config.batch.micro_size} x {accumulation} accumulated; ZeRO stage {config.zero.stage},"
        f" {config.optimizer.name}"
    )
    if on_gpu is None and any(config.stage_optimizer(stage).paged for stage in config.stages):
        lines.append("note: optimizer.paged=true needs a GPU where this is trained; this machine has none")
    return "\n".join(lines)


def refuse_impossible_stages(config: RunConfig, on_gpu: bool | None) -> None:
    """Raise ConfigError if any stage's settings of the engine do not go together. on_gpu: as in `check_run`."""
    is_bf16 = training_dtype(config.precision, on_gpu=on_gpu is not False) == torch.bfloat16
    for stage in config.stages:
        try:
            refuse_impossible(config.stage_optimizer(stage), config.zero, is_bf16=is_bf16, has_gpu=on_gpu)
        except EngineError as error:
            raise ConfigError(str(error)) from error


def refuse_without_masks(stage: StageConfig, shards: ShardSet) -> None:
    """Raise ConfigError if a stage whose network sees masks has a database without any."""
    for name in stage.databases if stage.has_hints else ():
        if not shards.entries(name, "train").num_hints():
            raise ConfigError(
                f"stage {stage.name} trains a ControlNet, but no training image of {name} has a mask: take {name} out"
                " of its databases"
            )


def _check_stage(config: RunConfig, stage: StageConfig, shards: ShardSet) -> str:
    refuse_without_masks(stage, shards)
    facts = stage_facts(config, stage, shards)
    already: dict[str, Mapping[str, object] | None] = {
        "model": read_record(config.stage_model(stage)),
        "checkpoints": (newest_position(config.stage_path(stage) / "checkpoints") or {}).get("facts"),
    }
    for name, found in already.items():
        if found is not None:
            refuse_other_facts(found, facts, config.stage_path(stage) / name)
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
