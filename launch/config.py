"""The whole configuration: the packages' own settings put together, and what crosses their borders checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from data.augment import AugmentConfig
from data.databases import AnyDatabase, UserPath
from data.databases.base import DATABASE_NAME
from data.encode import EncodeConfig
from data.loader import LoaderConfig
from data.prepare import PrepareConfig
from distributed.config import CheckpointConfig, EmaConfig, OptimizerConfig, Precision, ZeroConfig
from launch.config_errors import explain
from launch.errors import ConfigError
from launch.run_sections import BatchConfig, PreviewConfig, ValidationConfig
from launch.stage_checks import check_stages
from launch.stage_config import StageConfig
from models.base import ModelConfig
from models.objective import ObjectiveConfig
from models.record import read_record

MANIFEST_FILE = "manifest.parquet"
CHECKPOINTS = "checkpoints"


class RunConfig(BaseModel):
    """A run: databases, a base model, and the stages that train it."""

    model_config = ConfigDict(extra="forbid")

    run: UserPath = Field(description="Folder that everything of this run goes to.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of the order of samples and of all their random numbers.")
    shards: UserPath | None = Field(
        None,
        description="Folder of latent shards, shared by runs: in it, one folder for each resolution. None: RUN/shards.",
    )
    model: ModelConfig
    databases: dict[str, AnyDatabase] = Field(min_length=1)
    prepare: PrepareConfig = PrepareConfig()
    encode: EncodeConfig = EncodeConfig()
    loader: LoaderConfig = LoaderConfig()
    augment: AugmentConfig = AugmentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    zero: ZeroConfig = ZeroConfig()
    precision: Precision = Field("auto", description="auto: bf16 on CUDA, fp32 on the CPU.")
    batch: BatchConfig = BatchConfig()
    ema: EmaConfig = EmaConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    preview: PreviewConfig = PreviewConfig()
    stages: list[StageConfig] = Field(min_length=1)

    @field_validator("databases")
    @classmethod
    def _names_are_folders(cls, databases: dict[str, Any]) -> dict[str, Any]:
        for name in databases:
            if not DATABASE_NAME.fullmatch(name):
                raise ValueError(
                    f"database name {name!r} names folders: use letters of a to z, digits, '_' and '-', and begin with"
                    " a letter or digit"
                )
        return databases

    @property
    def manifest_path(self) -> Path:
        """The table of all images and their splits."""
        return self.run / MANIFEST_FILE

    @property
    def quality_report(self) -> Path:
        """The page that shows what `prepare` found in the images."""
        return self.run / "quality" / "report.html"

    @property
    def shards_path(self) -> Path:
        """The folder of latent shards, with a folder in it for each resolution."""
        return self.shards or self.run / "shards"

    def stages_until(self, name: str | None) -> list[StageConfig]:
        """Return the stages up to the one of that name; None: all of them."""
        names = [stage.name for stage in self.stages]
        if name is None:
            return self.stages
        if name not in names:
            raise ConfigError(f"there is no stage {name}; there are {', '.join(names)}")
        return self.stages[: names.index(name) + 1]

    def stage_optimizer(self, stage: StageConfig) -> OptimizerConfig:
        """The optimizer of one stage."""
        return OptimizerConfig.model_validate(self.optimizer.model_dump() | stage.optimizer)

    def stage_objective(self, stage: StageConfig) -> ObjectiveConfig:
        """The objective that one stage trains with."""
        return ObjectiveConfig.model_validate(self.objective.model_dump() | stage.objective)

    def stage_augment(self, stage: StageConfig) -> AugmentConfig:
        """What varies from one look at a sample to the next in one stage."""
        return AugmentConfig.model_validate(self.augment.model_dump() | stage.augment)

    def starts_of(self, stage: StageConfig) -> list[tuple[StageConfig, float]]:
        """The earlier stages whose models this one starts from, with their shares; none where it is the run's base."""
        number = self.stages.index(stage)
        if stage.start is None:
            return [(self.stages[number - 1], 1.0)] if number > 0 else []
        weights = {stage.start: 1.0} if isinstance(stage.start, str) else stage.start
        total = sum(weights.values())
        by_name = {earlier.name: earlier for earlier in self.stages[:number]}
        return [(by_name[name], weight / total) for name, weight in weights.items() if name in by_name]

    def stages_behind(self, stage: StageConfig) -> list[StageConfig]:
        """The stages that a stage's model went through, in the run's order; it is the last of them."""
        names = {stage.name}
        for later in reversed(self.stages):
            if later.name in names:
                names.update(start.name for start, _ in self.starts_of(later))
        return [each for each in self.stages if each.name in names]

    def databases_seen(self, stage: StageConfig) -> list[str]:
        """The databases that a stage's model was trained on, in this stage or in one that it goes on from."""
        seen = {name for each in self.stages_behind(stage) for name in each.trained_on}
        return [name for name in self.databases if name in seen]

    def stage_base(self, stage: StageConfig) -> ModelConfig:
        """The model that a stage starts from."""
        if not self.starts_of(stage):
            return self.model
        return self.model.model_copy(update={"base": str(self.stage_start(stage)), "single_file_config": None})

    def stage_start(self, stage: StageConfig) -> Path:
        """The diffusers folder of the earlier stages' model that a stage starts from: one's own, or their merge."""
        starts = self.starts_of(stage)
        return self.stage_model(starts[0][0]) if len(starts) == 1 else self.stage_path(stage) / "start"

    def stage_path(self, stage: StageConfig) -> Path:
        """The folder of one stage: its checkpoints, its log and its final model."""
        return self.run / "stages" / stage.name

    def stage_checkpoints(self, stage: StageConfig) -> Path:
        """The folder of one stage's checkpoints."""
        return self.stage_path(stage) / CHECKPOINTS

    def stage_model(self, stage: StageConfig) -> Path:
        """The diffusers folder that a finished stage leaves."""
        return self.stage_path(stage) / "model"

    def is_finished(self, stage: StageConfig) -> bool:
        """Whether the stage left its model, of at least its steps or epochs; with more asked for, it goes on."""
        record = read_record(self.stage_model(stage))
        if record is None:
            return False
        if stage.early_stop and record.get("early_stop") == stage.early_stop.model_dump():
            return True
        if stage.steps is None:
            return bool((record.get("epochs") or 0) >= (stage.epochs or 0))
        return bool(record["steps"] >= stage.steps)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the validated configuration of a YAML file, with `KEY=VALUE` overrides and `${oc.env:NAME}` resolved.

    Raises: ConfigError, one line, if the file, an override, a key or a value is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r} is not KEY=VALUE, such as optimizer.lr=2e-5")
    try:
        merged = _read(path)
        for override in overrides:
            key, _, value = override.partition("=")
            # One by one, since a merge of a whole dot-list refuses the index of a list (stages.0.steps).
            OmegaConf.update(merged, key, OmegaConf.from_dotlist([f"value={value}"])["value"])
        content = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, TypeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, needs keys and values such as `run: runs/mine`")
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, RunConfig)}") from error
    check_stages(config)
    if config.model.compile and config.zero.stage == 3:
        raise ConfigError(
            "model.compile=true compiles a UNet whose weights lie whole on each rank, but zero.stage=3 gathers"
            " them layer by layer: set model.compile=false, or zero.stage to 2"
        )
    return config


def _read(path: Path, extended_by: tuple[Path, ...] = ()) -> Any:
    """Return a YAML file, merged over those that it extends, with paths relative to itself."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    if not path.is_file():
        named = f", which {extended_by[-1]} extends" if extended_by else ""
        raise ConfigError(f"no configuration file {path}{named}: give a YAML file, such as configs/demo.yaml")
    if path.resolve() in [file.resolve() for file in extended_by]:
        raise ConfigError(f"{path} extends itself: {' -> '.join(map(str, (*extended_by, path)))}")
    content = OmegaConf.load(path)
    if not isinstance(content, DictConfig) or "extends" not in content:
        return content
    names = content.pop("extends")
    files = [names] if isinstance(names, str) else names
    if not isinstance(files, list | ListConfig) or not all(isinstance(name, str) for name in files):
        raise ConfigError(f"{path}: extends={names}, needed the name of a file, or a list of them")
    bases = [_read(path.parent / Path(name).expanduser(), (*extended_by, path)) for name in files]
    return OmegaConf.merge(*bases, content)
