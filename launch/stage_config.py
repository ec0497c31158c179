"""The settings of one stage of a curriculum."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from models.trained_part import LoraConfig, TrainedPart

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
# The start of a stage that does not go on from another one.
BASE = "base"


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
