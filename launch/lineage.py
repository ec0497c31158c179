"""What a model has been trained on and what was held out from it: a later stage, of any run, must keep to that.

It lies in the model's folder as hashes of image files, pictures and patients, which name nobody.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data.durable import replacing
from data.quality.likeness import alike_to
from data.shards import Entry, ShardSet
from data.splits import HELD_OUT
from launch.config import RunConfig
from launch.errors import ConfigError
from launch.facts import stage_parts
from launch.stage_config import StageConfig
from models.base import locate

LINEAGE_FILE = "lineage.safetensors"
SIDES = ("trained", "held_out")


@dataclass(frozen=True)
class Side:
    """What was trained on, or what was held out.

    ties: sorted hashes, uint64, of image files and patients. likenesses: perceptual hashes of the images, [N, bytes].
    """

    ties: NDArray[np.uint64]
    likenesses: NDArray[np.uint8]

    @classmethod
    def of_stage(cls, config: RunConfig, stage: StageConfig, shards: ShardSet, side: str) -> Self:
        """Return one side of a stage, of the databases that it sees."""
        samples = list(_samples(config, stage, shards, side))
        ties = np.fromiter((tie for entry, _ in samples for tie in _ties(entry)), dtype=np.uint64)
        return cls(np.unique(ties), _stacked([likeness for _, likeness in samples]))

    def united(self, other: Self) -> "Side":
        """Return both together."""
        both = [side.likenesses for side in (self, other) if len(side.likenesses)]
        likenesses = np.unique(np.concatenate(both), axis=0) if both else self.likenesses
        return Side(np.union1d(self.ties, other.ties), likenesses)


def read_lineage(base: str) -> dict[str, Side] | None:
    """Return what the model at `base` was trained on, and what was held out; None where no stage made it."""
    from safetensors.numpy import load_file

    file = locate(base) / LINEAGE_FILE
    if not file.is_file():
        return None
    stored = load_file(file)
    return {side: Side(stored[f"{side}.ties"], stored[f"{side}.likenesses"]) for side in SIDES}


def write_lineage(config: RunConfig, stage: StageConfig, shards: ShardSet, base: str) -> None:
    """Write the lineage of a stage that starts from `base` to its folder; its models carry it on."""
    sides = {side: Side.of_stage(config, stage, shards, side) for side in SIDES}
    if (earlier := read_lineage(base)) is not None:
        sides = {side: own.united(earlier[side]) for side, own in sides.items()}
    path = config.stage_path(stage) / LINEAGE_FILE
    with replacing(path) as temporary:
        temporary.write_bytes(_stored(sides))


def merged_lineage(bases: Sequence[str]) -> dict[str, bytes]:
    """Return the file that a merge of models is to carry: what any of them was trained on, and held out."""
    known = [lineage for base in bases if (lineage := read_lineage(base)) is not None]
    if not known:
        return {}
    return {LINEAGE_FILE: _stored({side: reduce(Side.united, [of[side] for of in known]) for side in SIDES})}


def _stored(sides: Mapping[str, Side]) -> bytes:
    from safetensors.numpy import save

    content: dict[str, NDArray[Any]] = {f"{side}.ties": of.ties for side, of in sides.items()}
    content |= {f"{side}.likenesses": of.likenesses for side, of in sides.items()}
    return save(content)


def files_of_lineage(stage_path: Path) -> dict[str, bytes]:
    """Return what a model of the stage is to carry, by file name."""
    return {LINEAGE_FILE: (stage_path / LINEAGE_FILE).read_bytes()}


def refuse_leaks(config: RunConfig, stage: StageConfig, shards: ShardSet, base: str) -> None:
    """Raise ConfigError if a stage that starts from `base` would mix what that was trained on and what it held out."""
    earlier = read_lineage(base)
    if earlier is None:
        return
    for side, other, would, did in (
        ("trained", "held_out", "train on", "held out from"),
        ("held_out", "trained", "hold out", "trained on by"),
    ):
        leaks = _among(earlier[other], list(_samples(config, stage, shards, side)), config)
        if leaks:
            raise ConfigError(
                f"stage {stage.name} would {would} {len(leaks)} images (such as {leaks[0]}) that were {did} the model"
                f" it starts from, {base}, or that are copies or of patients of such: use the manifest and shards of"
                " that run, or start from another model"
            )


def refuse_trained_on_held_out(config: RunConfig, shards: ShardSet, name: str, lineage: str) -> None:
    """Raise ConfigError if a model was trained on what a run holds out: there it would look better than it is.

    lineage: what `read_lineage` is asked for.
    """
    known = read_lineage(lineage)
    if known is None:
        return
    samples = [
        sample
        for database, splits in shards.databases.items()
        for split in HELD_OUT
        if split in splits
        for sample in _with_likenesses(shards, database, split)
    ]
    if leaks := _among(known["trained"], samples, config):
        raise ConfigError(
            f"{name} was trained on {len(leaks)} images (such as {leaks[0]}) that {config.run} holds out, or on copies"
            " or patients of such, and would look better there than it is: leave it out"
        )


def _among(side: Side, samples: Sequence[tuple[Entry, bytes]], config: RunConfig) -> list[str]:
    """Return the ids of those samples that are on a side of a lineage, or are copies or of patients of such."""
    known = set(side.ties.tolist())
    is_alike = alike_to(
        [likeness for _, likeness in samples],
        [bytes(row) for row in side.likenesses],
        config.prepare.quality.near_duplicate_bits,
    )
    return [entry.id for (entry, _), alike in zip(samples, is_alike, strict=True) if alike or known & set(_ties(entry))]


def _with_likenesses(shards: ShardSet, database: str, split: str) -> Iterator[tuple[Entry, bytes]]:
    entries = shards.entries(database, split)
    yield from zip(entries, entries.likenesses(), strict=True)


def _samples(config: RunConfig, stage: StageConfig, shards: ShardSet, side: str) -> Iterator[tuple[Entry, bytes]]:
    """Yield the samples that a stage trains on, or those that it holds out, with their perceptual hashes."""
    parts = stage_parts(config, stage, shards)
    for name in stage.trained_on:
        for split in ("train",) if side == "trained" else HELD_OUT:
            if split in shards.databases[name]:
                entries = shards.entries(name, split)
                likenesses = entries.likenesses()
                numbers = parts.get(name, range(len(entries))) if split == "train" else range(len(entries))
                yield from ((entries[number], likenesses[number]) for number in numbers)


def _ties(entry: Entry) -> list[int]:
    names = [f"file {entry.image_sha256}"]
    if entry.patient is not None:
        names.append(f"patient {entry.patient}")
    return [int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) for name in names]


def _stacked(likenesses: Sequence[bytes]) -> NDArray[np.uint8]:
    known = [np.frombuffer(likeness, dtype=np.uint8) for likeness in likenesses if likeness]
    return np.stack(known) if known else np.empty((0, 0), dtype=np.uint8)
