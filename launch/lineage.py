"""What a model has been trained on and what was held out from it: a later stage, of any run, must keep to that.

It lies in the model's folder as hashes of image files and patients, which name nobody.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.durable import replacing
from data.shards import Entry, ShardSet
from launch.config import RunConfig, StageConfig
from launch.errors import ConfigError
from launch.facts import stage_parts
from models.base import locate

LINEAGE_FILE = "lineage.safetensors"
HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Lineage:
    """Sorted hashes, uint64, of the images and patients that were trained on and of those that were held out."""

    trained: NDArray[np.uint64]
    held_out: NDArray[np.uint64]

    @classmethod
    def of_stage(cls, config: RunConfig, stage: StageConfig, shards: ShardSet) -> Self:
        """Return what a stage trains on and holds out, of the databases that it sees."""
        return cls(*(_sorted(_ties_of(_samples(config, stage, shards, of))) for of in ("train", "held out")))

    @classmethod
    def of_model(cls, base: str) -> Self | None:
        """Return that of the model at `base`; None where no stage made it."""
        from safetensors.numpy import load_file

        file = locate(base) / LINEAGE_FILE
        if not file.is_file():
            return None
        stored = load_file(file)
        return cls(stored["trained"], stored["held_out"])


def write_lineage(config: RunConfig, stage: StageConfig, shards: ShardSet, base: str) -> None:
    """Write the lineage of a stage that starts from `base` to its folder; its models carry it on."""
    from safetensors.numpy import save

    own, earlier = Lineage.of_stage(config, stage, shards), Lineage.of_model(base)
    content = {"trained": own.trained, "held_out": own.held_out}
    if earlier is not None:
        content = {name: np.union1d(ties, getattr(earlier, name)) for name, ties in content.items()}
    path = config.stage_path(stage) / LINEAGE_FILE
    with replacing(path) as temporary:
        temporary.write_bytes(save(content))


def files_of_lineage(stage_path: Path) -> dict[str, bytes]:
    """Return what a model of the stage is to carry, by file name."""
    return {LINEAGE_FILE: (stage_path / LINEAGE_FILE).read_bytes()}


def refuse_leaks(config: RunConfig, stage: StageConfig, shards: ShardSet, base: str) -> None:
    """Raise ConfigError if a stage that starts from `base` would mix what that was trained on and what it held out."""
    earlier = Lineage.of_model(base)
    if earlier is None:
        return
    for of, forbidden, would, did in (
        ("train", earlier.held_out, "train on", "held out from"),
        ("held out", earlier.trained, "hold out", "trained on by"),
    ):
        known = set(forbidden.tolist())
        leaks = [entry.id for entry in _samples(config, stage, shards, of) if known & set(_ties(entry))]
        if leaks:
            raise ConfigError(
                f"stage {stage.name} would {would} {len(leaks)} images that were {did} the model it starts from, {base}"
                f" (such as {leaks[0]}): the splits were drawn anew in between; use the manifest and shards of that"
                " run, or start from another model"
            )


def _samples(config: RunConfig, stage: StageConfig, shards: ShardSet, of: str) -> Iterator[Entry]:
    """Yield the samples that a stage trains on, or those that it holds out."""
    parts = stage_parts(config, stage, shards)
    for name in stage.trained_on:
        if of == "train":
            entries = shards.entries(name, "train")
            yield from (entries[number] for number in parts.get(name, range(len(entries))))
        else:
            for split in HELD_OUT:
                if split in shards.databases[name]:
                    yield from shards.entries(name, split)


def _ties(entry: Entry) -> list[int]:
    names = [f"file {entry.image_sha256}"]
    if entry.patient is not None:
        names.append(f"patient {entry.patient}")
    return [int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) for name in names]


def _ties_of(samples: Iterator[Entry]) -> Iterator[int]:
    return (tie for entry in samples for tie in _ties(entry))


def _sorted(ties: Iterator[int]) -> NDArray[np.uint64]:
    return np.unique(np.fromiter(ties, dtype=np.uint64))
