"""What the stages of a run must agree on, each with one line that says what is wrong."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from data.augment import AugmentConfig
from distributed.config import OptimizerConfig
from launch.config_errors import did_you_mean, explain
from launch.errors import ConfigError
from launch.stage_config import BASE, StageConfig
from models.objective import ObjectiveConfig

if TYPE_CHECKING:
    from launch.config import RunConfig


def check_stages(config: "RunConfig") -> None:
    """Raise ConfigError if stages do not agree with one another, or with the run's databases and settings."""
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"stages are named {', '.join(names)}: each needs a name of its own")
    if BASE in names:
        raise ConfigError(f"a stage is named {BASE}, which as a `start` means the run's own model: name it otherwise")
    for stage in config.stages:
        for name in [*stage.databases, *(stage.weights or {}), *stage.replay]:
            if name not in config.databases:
                raise ConfigError(
                    f"stage {stage.name} names database {name!r}, which is not among `databases`"
                    f" ({', '.join(config.databases)}){did_you_mean(name, config.databases)}"
                )
        _check_start(config, stage)
        if stage.early_stop and config.validation.every_steps is None:
            raise ConfigError(
                f"stage {stage.name} has early_stop, but validation.every_steps=null validates at its end alone: set"
                " the steps between validations"
            )
        if stage.early_stop and not config.checkpoint.keep_best:
            raise ConfigError(f"stage {stage.name} has early_stop, which needs checkpoint.keep_best=true")
        sections: tuple[tuple[str, type[BaseModel], Callable[[StageConfig], BaseModel]], ...] = (
            ("optimizer.", OptimizerConfig, config.stage_optimizer),
            ("objective.", ObjectiveConfig, config.stage_objective),
            ("augment.", AugmentConfig, config.stage_augment),
        )
        for key, section, of_stage in sections:
            try:
                of_stage(stage)
            except ValidationError as error:
                raise ConfigError(f"stage {stage.name}: {explain(error, section, key)}") from error
        if again := sorted(stage.replay.keys() & set(stage.databases)):
            raise ConfigError(f"stage {stage.name} replays {again[0]}, which it trains on anyway: see `weights`")
        if sum(stage.replay.values()) >= 1:
            raise ConfigError(
                f"stage {stage.name} replays {sum(stage.replay.values()):g} of its samples, needed less than 1:"
                f" what is left is for {', '.join(stage.databases)}"
            )
        if len(set(stage.databases)) < len(stage.databases):
            raise ConfigError(f"stage {stage.name} names a database twice: {', '.join(stage.databases)}; see `weights`")
        if stage.weights is not None and stage.weights.keys() != set(stage.databases):
            raise ConfigError(
                f"stage {stage.name} weighs {', '.join(stage.weights)} but trains on {', '.join(stage.databases)}:"
                " give each of its databases one weight"
            )


def _check_start(config: "RunConfig", stage: StageConfig) -> None:
    earlier = {other.name: other for other in config.stages[: config.stages.index(stage)]}
    if isinstance(stage.start, str) and stage.start not in (BASE, *earlier):
        raise ConfigError(
            f"stage {stage.name} starts from {stage.start!r}, needed one of {', '.join((BASE, *earlier))}"
            f"{did_you_mean(stage.start, list(earlier))}"
        )
    if isinstance(stage.start, dict):
        for name in stage.start:
            if name not in earlier:
                raise ConfigError(
                    f"stage {stage.name} starts from a merge with {name!r}, needed earlier stages"
                    f" ({', '.join(earlier) or 'there are none'}){did_you_mean(name, list(earlier))}"
                )
            if earlier[name].has_hints:
                raise ConfigError(
                    f"stage {stage.name} starts from a merge with {name}, which trained a ControlNet and left the UNet"
                    " as it was: merge the stage that it started from"
                )
        if len(stage.start) < 2:
            raise ConfigError(f"stage {stage.name} starts from a merge of one stage: give two, or its name alone")
