"""What each stage of a run did to the loss on every database: the matrix, average forgetting, forward transfer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from launch.config import RunConfig
from launch.stage_config import BASE, StageConfig
from launch.step_log import VALIDATION_FILE, read_steps
from models.record import read_record

DIFFUSION = "diffusion"


class Change(BaseModel):
    """A difference of two losses, and the same as a fraction of the loss that it is measured from."""

    model_config = ConfigDict(frozen=True)

    absolute: float
    relative: float


class Average(Change):
    """The mean of changes over databases."""

    databases: dict[str, Change]


class Chain(BaseModel):
    """The stages that a model went through, from the run's base on, and what is to be said of the last one."""

    model_config = ConfigDict(frozen=True)

    stages: tuple[str, ...]
    forgetting: Average | None  # None: of no database that only earlier stages were for
    forward_transfer: Average | None  # None: no later stage brought a new database


class MatrixRow(BaseModel):
    """The validation loss of one model on every database, and what that model was trained on."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str = DIFFUSION
    starts: tuple[str, ...] = ()  # what it goes on from, several if that is a merge; of the base: none
    databases: tuple[str, ...] = ()
    replay: tuple[str, ...] = ()
    losses: dict[str, float]

    @property
    def trained_on(self) -> tuple[str, ...]:
        """All databases whose samples the stage saw."""
        return (*self.databases, *self.replay)


class ForgettingMatrix(BaseModel):
    """Stages by databases: `rows` are the run's base and its finished stages in the configuration's order."""

    model_config = ConfigDict(frozen=True)

    databases: tuple[str, ...]
    rows: tuple[MatrixRow, ...]

    @property
    def base(self) -> MatrixRow:
        """The row of the model that the run starts from."""
        return self.rows[0]

    def change(self, row: MatrixRow, database: str) -> float | None:
        """Return how much higher a loss is than the base's, as a fraction; None where one of them is not known."""
        if row is self.base or database not in row.losses or database not in self.base.losses:
            return None
        return row.losses[database] / self.base.losses[database] - 1

    def notes(self, row: MatrixRow) -> list[str]:
        """Return what is to stand with a row's name, as the order of the rows does not tell it."""
        if row is self.base:
            return []
        above = self.rows[self.rows.index(row) - 1].name
        notes = [f"from {' + '.join(row.starts)}"] if row.starts != (above,) else []
        return notes + ([row.kind] if row.kind != DIFFUSION else [])

    @property
    def chains(self) -> list[Chain]:
        """Every way from the base to a stage that no other one goes on from, in the rows' order.

        Stages of another kind than diffusion are left out: a ControlNet's loss is that of a model that sees the mask.
        """
        ways = [self._way_to(row) for row in self.rows[1:] if row.kind == DIFFUSION]
        gone_on_from = {row.name for way in ways for row in way[:-1]}
        return [
            Chain(
                stages=tuple(row.name for row in way),
                forgetting=_average(_forgetting(way, self.databases)),
                forward_transfer=_average(_forward_transfer(self.base, way, self.databases)),
            )
            for way in ways
            if way[-1].name not in gone_on_from
        ]

    def _way_to(self, row: MatrixRow) -> list[MatrixRow]:
        """Return the diffusion stages that led to `row`, in the rows' order; it is the last of them."""
        by_name = {row.name: row for row in self.rows[1:]}
        led: set[str] = set()
        to_look_at = [row.name]
        while to_look_at:
            name = to_look_at.pop()
            if name in by_name and name not in led:
                led.add(name)
                to_look_at += by_name[name].starts
        return [row for row in self.rows[1:] if row.name in led and row.kind == DIFFUSION]

    def to_json(self) -> str:
        """Return the matrix and its chains' averages as JSON, which `from_json` reads."""
        content = self.model_dump(mode="json") | {"chains": [chain.model_dump(mode="json") for chain in self.chains]}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ForgettingMatrix":
        """Return the matrix that `to_json` wrote."""
        return cls.model_validate_json(text)


def _forgetting(way: Sequence[MatrixRow], databases: Sequence[str]) -> dict[str, Change]:
    """Return the last stage's loss above the lowest that was there since a database was first trained on.

    Of the databases that stages before the last one trained on, and that are not its own task; a replayed one counts.
    Positive: forgotten. Relative to that lowest loss.
    Source: Chaudhry et al. 2018 (arXiv:1801.10112), eq. 3, whose accuracies are higher when better: with losses the
    signs turn, and their maximum over earlier models is a minimum. What a model that had not yet been trained on a
    database did on it is not counted, as it was not learnt.
    """
    *earlier, last = way
    found = {}
    for name in databases:
        first = _first_trained(earlier, name)
        known = [row.losses[name] for row in earlier[first:] if name in row.losses] if first is not None else []
        if known and name in last.losses and name not in last.databases:
            lowest = min(known)
            found[name] = Change(absolute=last.losses[name] - lowest, relative=last.losses[name] / lowest - 1)
    return found


def _forward_transfer(base: MatrixRow, way: Sequence[MatrixRow], databases: Sequence[str]) -> dict[str, Change]:
    """Return how far the stages before a database's first one had lowered its loss already; relative to the base's.

    Of the databases that a later stage than the first was the first to train on; positive: they helped.
    Source: Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), FWT in section 2, with the signs turned as above; its
    reference is a model with random weights, here it is the run's base.
    """
    found = {}
    for name in databases:
        first = _first_trained(way, name)
        if first and name in base.losses and name in way[first - 1].losses:
            reference, reached = base.losses[name], way[first - 1].losses[name]
            found[name] = Change(absolute=reference - reached, relative=1 - reached / reference)
    return found


def _first_trained(way: Sequence[MatrixRow], database: str) -> int | None:
    return next((number for number, row in enumerate(way) if database in row.trained_on), None)


def _average(changes: Mapping[str, Change]) -> Average | None:
    if not changes:
        return None
    count = len(changes)
    return Average(
        absolute=sum(change.absolute for change in changes.values()) / count,
        relative=sum(change.relative for change in changes.values()) / count,
        databases=dict(changes),
    )


def read_matrix(config: RunConfig) -> ForgettingMatrix:
    """Return the matrix of a run's finished stages, from the logs in their folders.

    A loss that is not known (not finite, or of a run before there were these logs) is missing in its row.
    """
    rows = [MatrixRow(name=BASE, losses=_base_losses(config))]
    for stage in config.stages:
        if config.is_finished(stage):
            record = read_record(config.stage_model(stage)) or {}
            rows.append(
                MatrixRow(
                    name=stage.name,
                    kind=stage.kind,
                    starts=tuple(start.name for start, _ in config.starts_of(stage)) or (BASE,),
                    databases=tuple(stage.databases),
                    replay=tuple(stage.replay),
                    losses=validation_losses(config, stage, record.get("steps")),
                )
            )
    databases = [name for name in config.databases if any(name in row.losses for row in rows)]
    return ForgettingMatrix(databases=tuple(databases), rows=tuple(rows))


def _base_losses(config: RunConfig) -> dict[str, float]:
    """Return the losses at step 0 of the first stage that starts from the run's base."""
    starting = [stage for stage in config.stages if not config.starts_of(stage) and stage.kind == DIFFUSION]
    return next((losses for stage in starting if (losses := validation_losses(config, stage, 0))), {})


def validation_losses(config: RunConfig, stage: StageConfig, step: int | None) -> dict[str, float]:
    """Return the losses of a stage's validation after `step` steps by database; empty where there was none."""
    path = config.stage_path(stage) / VALIDATION_FILE
    entries: list[dict[str, Any]] = read_steps(path) if path.exists() else []
    of_step: dict[str, float | None] = next((entry["losses"] for entry in entries if entry["step"] == step), {})
    return {name: loss for name, loss in of_step.items() if loss is not None}
