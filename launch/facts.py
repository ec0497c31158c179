"""What the meaning of a stage's position depends on: a checkpoint or model with other facts is not gone on from."""

import math
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.order import Order, hash64
from data.shards import ShardSet
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.stage_config import StageConfig
from models.base import noise_schedule
from models.record import read_record
from models.stable_diffusion import unet_sha256

# The fact that says which images these are.
IMAGES = "images_sha256"
PROMPTS = "prompts_sha256"
# What the shards' latents and embeddings are made of: whatever machine and libraries made them.
SHARD_PARTS = ("resolution", "resize", "moments_dtype", "vae", "text_encoder", "tokenizer")
# What a fact was before it was written down.
UNWRITTEN = {"kind": "diffusion", "trains": "all"}
# Facts of which nothing is known where they are not written down.
WRITTEN_LATER = {PROMPTS, "base_sha256", *(f"shards.{part}" for part in SHARD_PARTS)}


def stage_seed(config: RunConfig, stage: StageConfig) -> int:
    """Return the seed of a stage's order and draws, in [0, 2^64): of its name, so that stages may be put before it."""
    return hash64(config.seed, *stage.name.encode())


def stage_order(config: RunConfig, stage: StageConfig, shards: ShardSet) -> Order:
    """Return the order of a stage's training samples."""
    sizes = _training_sizes(config, stage, shards)
    return Order(sizes, stage_seed(config, stage), stage_weights(stage, sizes))


def stage_weights(stage: StageConfig, sizes: Mapping[str, int]) -> Mapping[str, float] | None:
    """Return the relative shares of all databases that a stage sees; None: as their sizes are."""
    if not stage.replay:
        return stage.weights
    own = {name: float((stage.weights or sizes)[name]) for name in stage.databases}
    left = 1 - sum(stage.replay.values())
    return {name: left * weight / sum(own.values()) for name, weight in own.items()} | stage.replay


def stage_parts(config: RunConfig, stage: StageConfig, shards: ShardSet) -> dict[str, NDArray[np.int64]]:
    """Return the numbers of each database's training samples that a stage trains on, where these are not all."""
    if stage.fraction == 1:
        return {}
    return {name: shards.part(name, stage.fraction, config.seed) for name in stage.databases}


def stage_facts(config: RunConfig, stage: StageConfig, shards: ShardSet) -> dict[str, Any]:
    """Return the facts of a stage as JSON. Ranks, micro batch, steps and learning rate may change on the way."""
    schedule, optimizer = noise_schedule(config.model), config.stage_optimizer(stage)
    return {
        "stage": stage.name,
        "kind": stage.kind,
        "seed": config.seed,
        "batch.global_size": config.batch.global_size,
        "fraction": stage.fraction,
        "samples": _training_sizes(config, stage, shards),
        IMAGES: _images_sha256(config, stage, shards),
        PROMPTS: _prompts_sha256(stage, shards),
        **{f"shards.{part}": shards.fingerprint.get(part) for part in SHARD_PARTS},
        "base_sha256": None if config.starts_of(stage) else unet_sha256(config.model),
        "weights": stage.weights,
        "replay": stage.replay,
        "augment": config.stage_augment(stage).model_dump(mode="json"),
        "objective": config.stage_objective(stage).model_dump(mode="json"),
        "optimizer.name": optimizer.name,
        "optimizer.master": optimizer.master,
        **facts_of_part(stage),
        "prediction_type": schedule.prediction_type,
        "zero_terminal_snr": schedule.has_zero_terminal_snr,
        "start": _start(config, stage, shards),
    }


def stage_steps(config: RunConfig, stage: StageConfig, shards: ShardSet) -> int:
    """Return the optimizer steps of a stage; with `epochs`, as many as give its own databases so many samples."""
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    sizes = _training_sizes(config, stage, shards)
    samples = stage.epochs * sum(sizes[name] for name in stage.databases) / (1 - sum(stage.replay.values()))
    return math.ceil(samples / config.batch.global_size - 1e-9)  # 0.1 * 30 is a little more than 3


def _start(config: RunConfig, stage: StageConfig, shards: ShardSet) -> dict[str, Any]:
    """Return the stages that a stage starts from, how many steps they had and, of several, their shares."""
    starts = []
    for earlier, share in config.starts_of(stage):
        record = read_record(config.stage_model(earlier))
        steps = max(stage_steps(config, earlier, shards), record["steps"] if record else 0)
        starts.append({"stage": earlier.name, "steps": steps, "share": share})
    if len(starts) > 1:
        return {"merge": starts}
    return {"stage": starts[0]["stage"], "steps": starts[0]["steps"]} if starts else {"stage": None, "steps": None}


def facts_of_part(stage: StageConfig) -> dict[str, Any]:
    """Return the facts that say which parameters of the UNet train."""
    return {"trains": stage.trains, "lora": stage.lora.model_dump(mode="json") if stage.lora else None}


def _training_sizes(config: RunConfig, stage: StageConfig, shards: ShardSet) -> dict[str, int]:
    parts = stage_parts(config, stage, shards)
    return {name: len(parts.get(name, shards.entries(name, "train"))) for name in stage.trained_on}


def _images_sha256(config: RunConfig, stage: StageConfig, shards: ShardSet) -> str:
    """Return a hash of the images that a stage trains on, in their order, and of those that it holds out."""
    parts = stage_parts(config, stage, shards)
    digest = sha256()
    for name in stage.trained_on:
        for split in shards.databases[name]:
            hashes = shards.entries(name, split).image_hashes()
            chosen = hashes[parts[name]] if split == "train" and name in parts else hashes
            digest.update(f"{name}/{split}\n{' '.join(chosen)}\n".encode())
    return digest.hexdigest()


def _prompts_sha256(stage: StageConfig, shards: ShardSet) -> str:
    """Return a hash of the prompts of all training samples, in their order, and of which of these have a mask."""
    digest = sha256()
    for name in stage.trained_on:
        entries = shards.entries(name, "train")
        first, numbers = entries.prompt_numbers()
        texts = [shards.prompts[number] for number in numbers]
        digest.update(f"{name} {' '.join(map(str, first - first[0]))}\n{chr(10).join(texts)}\n".encode())
        digest.update(entries.has_hints().tobytes())
    return digest.hexdigest()


def refuse_other_facts(found: Mapping[str, Any], expected: Mapping[str, Any], where: Path) -> None:
    """Raise ConfigError, naming the first fact, if what lies at `where` was trained with others than `expected`."""
    for name, value in expected.items():
        if name in WRITTEN_LATER and name not in found:
            continue
        saved = found.get(name, UNWRITTEN.get(name))
        if saved == value:
            continue
        if name == IMAGES:
            raise ConfigError(
                f"{where} was trained on other images than the shards hold now, or with other ones held out: encode the"
                " manifest that it had, or remove that folder, or give this run another one"
            )
        if name == PROMPTS:
            raise ConfigError(
                f"{where} was trained with other prompts, or masks of other images, than the shards hold now: encode"
                " the manifest that it had, or remove that folder, or give this run another one"
            )
        if name == "base_sha256":
            raise ConfigError(
                f"{where} was trained from other weights than model.base has now: set it back, or remove that"
                " folder, or give this run another one"
            )
        raise ConfigError(
            f"{where} was trained with {name}={saved}, this run has {value}: set it back, or remove that folder,"
            " or give this run another one"
        )
