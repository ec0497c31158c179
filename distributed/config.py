"""The settings of this package. They import nothing heavy, so that a wrong one is refused in a fraction of a second."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["auto", "fp32", "bf16"]
Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(BaseModel):
    """How the weights are updated."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["adamw8bit", "adamw"] = Field(
        "adamw8bit",
        description="adamw8bit: bitsandbytes AdamW, matrices' moments in 8 bits; adamw: all moments in 32.",
    )
    lr: float = Field(1e-5, gt=0, allow_inf_nan=False, description="Learning rate at its highest, after the warm-up.")
    lr_schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="What follows the warm-up: stay, or fall to lr_final_fraction by the last step."
    )
    lr_final_fraction: float = Field(0.0, ge=0, le=1, description="Where cosine and linear end, as a fraction of lr.")
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps over which the learning rate grows from 0.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Decay of the first and the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled decay, on matrices and convolutions only.")
    max_bad_steps: int = Field(
        10, ge=1, description="Steps in a row with a gradient that is not finite, after which training fails."
    )
    clip_norm: float = Field(1.0, ge=0, description="Largest norm of the whole gradient. 0: no clipping.")


class ZeroConfig(BaseModel):
    """How training state is divided among the ranks."""

    model_config = ConfigDict(extra="forbid")

    stage: Literal[1, 2] = Field(
        2, description="1: optimizer state and master weights are divided among the ranks; 2: gradients too."
    )
    reduce_bucket_elements: int = Field(
        5_000_000, gt=0, description="Gradients are summed over the ranks in buckets of this many elements."
    )
    allgather_bucket_elements: int = Field(
        5_000_000, gt=0, description="Updated weights are sent to the other ranks in buckets of this many elements."
    )


class EmaConfig(BaseModel):
    """How long the weights are averaged for sampling and validation."""

    model_config = ConfigDict(extra="forbid")

    length: float | None = Field(
        0.1,
        gt=0,
        lt=0.28,
        description="Width of the average as a fraction of the training so far (sigma_rel). None: no average.",
    )


class CheckpointConfig(BaseModel):
    """When the training state is saved, and what is kept of it."""

    model_config = ConfigDict(extra="forbid")

    save_every_steps: int | None = Field(
        500, gt=0, description="Optimizer steps between checkpoints. None: only at the end and when stopped."
    )
    keep_last: int = Field(2, ge=1, description="Newest checkpoints to keep; older ones are deleted after a save.")
