"""What a model was trained on: databases with their licences, and prompts. It accumulates over stages and merges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.shards import ShardSet
from launch.config import RunConfig
from launch.facts import stage_parts
from launch.stage_config import StageConfig
from models.base import locate
from models.record import read_record

KEY = "training"
# A record keeps so many prompts, evenly by label: a database with a sentence for each image would make it huge.
MAX_PROMPTS = 2000


@dataclass(frozen=True)
class Training:
    """databases: "database", "kind", "title", "licence", "simulated" and "images" of each.

    They have "mask_classes", names, too where a ControlNet was shown them, as far as the run's manifest was there.

    prompts: "prompt", "label" and "database" of each distinct one, as far as they were kept. num_prompts: of all.
    palette: names of the mask classes by number. unrecorded: earlier models whose record does not say all this.
    bases: what the first training started from: models that nothing of SonoShard trained.
    """

    databases: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[dict[str, str]] = field(default_factory=list)
    num_prompts: int = 0
    palette: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)

    @property
    def is_simulated(self) -> bool:
        """Whether nothing but simulated images is known to have been seen."""
        return bool(self.databases) and all(database["simulated"] for database in self.databases)


def training_until(config: RunConfig, stage: StageConfig, shards: ShardSet, base: str) -> Training:
    """Return what a model that a stage made of `base` was trained on, as far as the base's record goes back."""
    found = locate(base)
    earlier = training_of(read_record(found) if found.is_dir() else None, base)
    return united([earlier, stage_training(config, stage, shards)])


def stage_training(config: RunConfig, stage: StageConfig, shards: ShardSet) -> Training:
    """Return what one stage trains on."""
    parts = stage_parts(config, stage, shards)
    told = _told_by_manifest(config)
    databases, prompts = [], {}
    for name in stage.trained_on:
        settings, entries = config.databases[name], shards.entries(name, "train")
        numbers = parts.get(name, range(len(entries)))
        for entry in (entries[number] for number in numbers):
            for number in entry.prompts:
                one = {"prompt": shards.prompts[number], "label": entry.label, "database": name}
                prompts[tuple(one.values())] = one
        by_manifest = told.get(name, _Told())
        database = {
            "database": name,
            "kind": settings.kind,
            "title": settings.about.title,
            "licence": "; ".join(sorted(by_manifest.licences)) or settings.about.licence,
            "simulated": by_manifest.is_simulated or settings.kind == "simulated",
            "images": len(numbers),
        }
        if stage.has_hints and name in told:
            database["mask_classes"] = sorted(by_manifest.mask_classes)
        databases.append(database)
    distinct = list(prompts.values())
    return Training(databases, bounded(distinct), len(distinct), list(shards.palette))


def training_of(record: Mapping[str, Any] | None, name: str) -> Training:
    """Return what the model of a record was trained on, through all merges; without one it is a base itself.

    name: of the model, for people.
    """
    if record is None:
        return Training(bases=[name])
    if parents := record.get("parents"):
        names = [f"parent {number} of {name}" for number in range(1, len(parents) + 1)]
        return united(training_of(parent, of) for parent, of in zip(parents, names, strict=True))
    if KEY in record:
        return Training(**record[KEY])
    return Training(unrecorded=[str(record.get("stage") or name)])


def united(trainings: Iterable[Training]) -> Training:
    """Return several together.

    A database that several saw stands there once, with the most images of it, the licences and mask classes of all, and
    simulated only where it is for all.
    """
    several = list(trainings)
    databases: dict[tuple[str, str], dict[str, Any]] = {}
    for database in (one for training in several for one in training.databases):
        key = database["database"], database["kind"]
        known = databases.get(key)
        of_both = [one for one in (known, database) if one is not None]
        databases[key] = dict(max(of_both, key=lambda one: one["images"]))
        licences = [licence for one in of_both for licence in one["licence"].split("; ")]
        databases[key]["licence"] = "; ".join(dict.fromkeys(licences))
        databases[key]["simulated"] = all(one["simulated"] for one in of_both)
        if classes := [one["mask_classes"] for one in of_both if "mask_classes" in one]:
            databases[key]["mask_classes"] = sorted(set().union(*classes))
    prompts = {tuple(one.values()): one for training in several for one in training.prompts}
    left_out = sum(training.num_prompts - len(training.prompts) for training in several)
    return Training(
        list(databases.values()),
        bounded(list(prompts.values())),
        len(prompts) + left_out,
        max((training.palette for training in several), key=len, default=[]),
        list(dict.fromkeys(name for training in several for name in training.unrecorded)),
        list(dict.fromkeys(name for training in several for name in training.bases)),
    )


def bounded(prompts: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return at most MAX_PROMPTS of them, as many of each label as can be, in their order."""
    labels: dict[tuple[str, str], list[int]] = {}
    for number, one in enumerate(prompts):
        labels.setdefault((one["database"], one["label"]), []).append(number)
    kept: list[int] = []
    left = MAX_PROMPTS
    for waiting, numbers in enumerate(sorted(labels.values(), key=len)):
        share = left // (len(labels) - waiting)
        kept += numbers[:share]
        left -= min(share, len(numbers))
    return [prompts[number] for number in sorted(kept)]


@dataclass
class _Told:
    """What the manifest says of a database's images. is_simulated: all of them are."""

    licences: set[str] = field(default_factory=set)
    is_simulated: bool = False
    mask_classes: set[str] = field(default_factory=set)


def _told_by_manifest(config: RunConfig) -> dict[str, _Told]:
    """Return what is told of each database; nothing where the shards came without the manifest."""
    import pyarrow.parquet as pq

    if not config.manifest_path.is_file():
        return {}
    with pq.ParquetFile(config.manifest_path) as manifest:  # `pq.read_table` imports pandas
        table = manifest.read(["database", "licence", "flags", "mask_classes"])
    told: dict[str, _Told] = {}
    for database, licence, flags, classes in zip(*(column.to_pylist() for column in table.columns), strict=True):
        of_database = told.setdefault(database, _Told(is_simulated=True))
        of_database.licences |= {licence} if licence else set()
        of_database.is_simulated &= "simulated" in (flags or ())
        of_database.mask_classes |= {name for _, name in classes}
    return told
