"""The whole configuration: the packages' own settings put together, and what crosses their borders checked."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data.augment import AugmentConfig
from data.databases import AnyDatabase, UserPath
from data.encode import EncodeConfig
from data.loader import LoaderConfig
from data.prepare import PrepareConfig
from distributed.config import CheckpointConfig, EmaConfig, OptimizerConfig, Precision, ZeroConfig
from launch.config_errors import did_you_mean, explain
from launch.errors import ConfigError
from models.base import ModelConfig
from models.objective import ObjectiveConfig
from models.record import read_record
from models.sampling import SamplingConfig
from models.trained_part import LoraConfig, TrainedPart

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
# The start of a stage that does not go on from another one.
BASE = "base"


class BatchConfig(BaseModel):
    """How many samples an optimizer step sees, and how many a rank holds at a time."""

    model_config = ConfigDict(extra="forbid")

    global_size: int = Field(64, gt=0, description="Samples of one optimizer step, over all ranks.")
    micro_size: int = Field(4, gt=0, description="Samples that one rank takes at a time; memory grows with it.")

    def check_ranks(self, world_size: int) -> None:
        """Raise ConfigError unless a step is a whole number of micro batches on every one of `world_size` ranks."""
        unit = self.micro_size * world_size
        if self.global_size % unit == 0:
            return
        below, above = self.global_size // unit * unit, (self.global_size // unit + 1) * unit
        nearest = f"{below}, {above}" if below else f"{above}"
        raise ConfigError(
            f"batch.global_size={self.global_size} is not micro_size={self.micro_size} x {world_size} ranks"
            f" x a whole number; nearest that work: {nearest}"
        )


class ValidationConfig(BaseModel):
    """The loss on held-out patients, always at the same timesteps and noise."""

    model_config = ConfigDict(extra="forbid")

    every_steps: int | None = Field(
        500, gt=0, description="Optimizer steps between validations. None: at the start and at the end."
    )
    num_samples: int = Field(64, gt=0, description="Held-out samples of each database; all where it has fewer.")
    timesteps_per_sample: int = Field(4, gt=0, description="Timesteps at which each sample is taken, evenly spread.")


class PreviewConfig(BaseModel):
    """The images that TensorBoard shows while training, from the averaged weights."""

    model_config = ConfigDict(extra="forbid")

    every_steps: int | None = Field(
        500, gt=0, description="Optimizer steps between previews. None: at the start and at the end."
    )
    prompts: list[str] | None = Field(
        None,
        description="What to draw. None: a prompt of each label, up to eight. A ControlNet stage draws held-out masks"
        " by their own prompts instead.",
    )
    seed: int = Field(0, ge=0, description="Prompt i starts from the noise of seed + i.")
    sampling: SamplingConfig = SamplingConfig()


class EarlyStopConfig(BaseModel):
    """Ends a stage whose validation loss falls no more; what it leaves is the model of its lowest validation loss."""

    model_config = ConfigDict(extra="forbid")

    patience: int = Field(
        3, gt=0, description="Validations, every validation.every_steps, without a lower loss after which it ends."
    )
    min_improvement: float = Field(
        0.0, ge=0, lt=1, description="How much lower a loss must be to count as lower, as a fraction of the lowest."
    )


class StageConfig(BaseModel):
    """One stage of the curriculum: which databases, for how long."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="Names the stage's folder and its curves.")
    kind: Literal["diffusion", "controlnet"] = Field(
        "diffusion",
        description="diffusion: trains the UNet. controlnet: trains a ControlNet that draws what a mask shows, made of"
        " the UNet that the stage starts from, which stays as it is.",
    )
    databases: list[str] = Field(min_length=1, description="Names from `databases` to train on.")
    weights: dict[str, Weight] | None = Field(None, description="Relative shares of them. None: as their sizes are.")
    replay: dict[str, Share] = Field(
        default_factory=dict,
        description="Databases of earlier stages to go on seeing, so that they are not forgotten: the share of all "
        "samples that each gets; what is left is divided among `databases`.",
    )
    steps: int | None = Field(None, gt=0, description="Optimizer steps. None: as `epochs` says.")
    epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Instead of `steps`: how often, on average, the stage sees each training image of `databases`;"
        " those of `replay` come on top.",
    )
    early_stop: EarlyStopConfig | None = Field(
        None, description="End before that where the validation loss falls no more. None: train to the end."
    )
    optimizer: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of `optimizer` that are other ones in this stage, such as {lr: 1.0e-5}.",
    )
    objective: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of `objective` that are other ones in this stage, such as {min_snr_gamma: 1}; validation"
        " takes those of the run, so that the losses of stages can be compared.",
    )
    augment: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of `augment` that are other ones in this stage, such as {caption_dropout: 0.5}.",
    )
    start: str | dict[str, Weight] | None = Field(
        None,
        description="Name of an earlier stage to go on from; `base`: the run's own model; several names with relative"
        " weights, such as {busi: 0.7, ours: 0.3}: the mean of their weights. None: the stage before.",
    )
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of each database's training images that is trained on, by patient: whole patients in an"
        " order that `seed` keys, so that a smaller share lies within a larger one.",
    )
    trains: TrainedPart = Field(
        "all",
        description="Which parameters train. all; cross_attention: the attention to the prompt alone; lora: low-rank "
        "changes to all attention, folded into the model at the end and also left beside it as a file. The others stay "
        "as they are, without gradients, moments and averages.",
    )
    lora: LoraConfig | None = Field(None, description="With trains=lora. None: its defaults.")

    @field_validator("start", mode="before")
    @classmethod
    def _start_is_a_name_or_weights(cls, start: Any) -> Any:
        # Here, since pydantic tells of each of the types that it might have been.
        shares = list(start.values()) if isinstance(start, dict) else [1]
        if not isinstance(start, str | dict | None) or not all(
            isinstance(share, int | float) and math.isfinite(share) and share > 0 for share in shares
        ):
            raise ValueError(f"start={start}: needed a stage's name, or names with weights above 0")
        return start

    @model_validator(mode="after")
    def _has_an_end(self) -> "StageConfig":
        if (self.steps is None) == (self.epochs is None):
            has = "neither steps nor epochs" if self.steps is None else "both steps and epochs"
            raise ValueError(f"stage {self.name} has {has}: give one of them")
        return self

    @model_validator(mode="after")
    def _parts_are_of_the_unet(self) -> "StageConfig":
        if self.trains == "lora":
            self.lora = self.lora or LoraConfig()
        elif self.lora is not None:
            raise ValueError(
                f"stage {self.name} sets lora, but trains={self.trains}: set trains=lora, or leave lora out"
            )
        if self.kind == "controlnet" and self.trains != "all":
            raise ValueError(
                f"stage {self.name} is of kind controlnet, and trains={self.trains} is for a UNet: leave trains out"
            )
        return self

    @property
    def trained_on(self) -> tuple[str, ...]:
        """All databases whose samples the stage sees."""
        return (*self.databases, *self.replay)

    @property
    def network(self) -> Literal["unet", "controlnet"]:
        """The part of the model that is trained."""
        return "controlnet" if self.kind == "controlnet" else "unet"

    @property
    def has_hints(self) -> bool:
        """Whether the network sees masks."""
        return self.kind == "controlnet"


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
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"database name {name!r} names folders: use letters, digits, '_' and '-'")
        return databases

    @property
    def manifest_path(self) -> Path:
        """The table of all images and their splits."""
        return self.run / "manifest.parquet"

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
    _check_stages(config)
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


def _check_stages(config: RunConfig) -> None:
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


def _check_start(config: RunConfig, stage: StageConfig) -> None:
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
