"""The settings of this package. They import nothing heavy, so that a wrong one is refused in a fraction of a second."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from distributed.errors import EngineError

Precision = Literal["auto", "fp32", "bf16"]
OptimizerName = Literal["adamw8bit", "lion8bit", "ademamix8bit", "adamw"]
Decay = Annotated[float, Field(ge=0, lt=1)]
# Beyond it a power function of time has no such width.
MAX_AVERAGE_LENGTH = 0.28
Length = Annotated[float, Field(gt=0, lt=MAX_AVERAGE_LENGTH)]

_OWN_BETAS: dict[OptimizerName, tuple[float, ...]] = {
    "adamw8bit": (0.9, 0.999),
    "adamw": (0.9, 0.999),
    "lion8bit": (0.9, 0.99),
    "ademamix8bit": (0.9, 0.999, 0.9999),
}
_EPS = 1e-8


class OptimizerConfig(BaseModel):
    """How the weights are updated."""

    model_config = ConfigDict(extra="forbid")

    name: OptimizerName = Field(
        "adamw8bit",
        description="adamw8bit, lion8bit, ademamix8bit: matrices' moments in 8 bits (2, 1 and 3 bytes an element"
        "); adamw: all moments in 32 bits (8 bytes). Lion wants a third to a tenth of AdamW's lr.",
    )
    master: Literal["fp32", "stochastic"] = Field(
        "fp32",
        description="What bf16 weights are updated in. fp32: a copy in 32 bits, 4 bytes an element; stochastic: the "
        "bf16 weights themselves, rounded at random so that small changes count on average.",
    )
    paged: bool = Field(
        False,
        description="Let moments move to host memory when the GPU's runs short (CUDA's managed memory); those of under "
        "100,000 elements on a rank stay on the GPU.",
    )
    lr: float = Field(1e-5, gt=0, allow_inf_nan=False, description="Learning rate at its highest, after the warm-up.")
    lr_schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="What follows the warm-up: stay, or fall to lr_final_fraction by the last step."
    )
    lr_final_fraction: float = Field(0.0, ge=0, le=1, description="Where cosine and linear end, as a fraction of lr.")
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps over which the learning rate grows from 0.")
    betas: tuple[Decay, Decay] | tuple[Decay, Decay, Decay] | None = Field(
        None,
        description="Decays of the moments. None: the optimizer's own, (0.9, 0.999) for AdamW, (0.9, 0.99) for Lion, "
        "(0.9, 0.999, 0.9999) for AdEMAMix.",
    )
    eps: float | None = Field(
        None, gt=0, description="Added to the root of the second moment, which Lion has not. None: 1e-8."
    )
    weight_decay: float = Field(0.01, ge=0, description="Decoupled decay, on matrices and convolutions only.")
    l2_sp: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Pull towards the weights that the stage started from (L2-SP, arXiv:1802.01483), decoupled from "
        "the gradient as AdamW's weight decay is: after each step w -= lr * l2_sp * (w - w_start), on all that trains. "
        "Costs a copy of the weights, divided by the ranks; 0: none.",
    )
    max_bad_steps: int = Field(
        10, ge=1, description="Steps in a row with a gradient that is not finite, after which training fails."
    )
    clip_norm: float = Field(1.0, ge=0, description="Largest norm of the whole gradient. 0: no clipping.")

    @property
    def matrix_bits(self) -> int:
        """Bits of an element of a matrix's moments."""
        return 8 if self.name.endswith("8bit") else 32

    @property
    def resolved_betas(self) -> tuple[float, ...]:
        """The decays, or the optimizer's own."""
        return self.betas or _OWN_BETAS[self.name]

    @model_validator(mode="after")
    def _pull_ends_at_the_start(self) -> "OptimizerConfig":
        if self.lr * self.l2_sp > 1:
            raise ValueError(
                f"optimizer.l2_sp={self.l2_sp:g} with lr={self.lr:g} pulls the weights beyond where they started:"
                f" needed lr * l2_sp <= 1, so an l2_sp of at most {1 / self.lr:g}"
            )
        return self

    @property
    def resolved_eps(self) -> float:
        """What is added to the root of the second moment."""
        return self.eps or _EPS

    @model_validator(mode="after")
    def _eps_has_a_use(self) -> "OptimizerConfig":
        if self.eps is not None and self.name == "lion8bit":
            raise ValueError(
                f"optimizer.eps={self.eps:g} has no use in lion8bit, which has no second moment: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _betas_fit(self) -> "OptimizerConfig":
        needed = len(_OWN_BETAS[self.name])
        if self.betas is not None and len(self.betas) != needed:
            raise ValueError(
                f"optimizer.betas has {len(self.betas)} values, {self.name} needs {needed}; leave it out for its own"
            )
        return self


class ZeroConfig(BaseModel):
    """How training state is divided among the ranks."""

    model_config = ConfigDict(extra="forbid")

    stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="What is divided among the ranks. 0: nothing; 1: optimizer state and master weights; 2: gradients "
        "too; 3: the weights too, which are gathered layer by layer (slower).",
    )
    offload: Literal["none", "optimizer"] = Field(
        "none",
        description="optimizer: master weights and moments lie in host memory and are updated by the CPU (slower).",
    )
    reduce_bucket_elements: int = Field(
        5_000_000,
        gt=0,
        description="Gradients are summed over the ranks in buckets of at most this many elements, and, beyond 2 "
        "million, of a fortieth of what trains.",
    )
    allgather_bucket_elements: int = Field(
        5_000_000,
        gt=0,
        multiple_of=2,
        description="With stage 3, how many elements of the next layers are gathered ahead of their use; twice as many"
        " may be whole at once. The others send their updated weights group by group.",
    )


class EmaConfig(BaseModel):
    """Over how long the weights are averaged for sampling and validation."""

    model_config = ConfigDict(extra="forbid")

    lengths: list[Length] = Field(
        [0.1],
        description="Widths of the averages as fractions of the training so far (sigma_rel), 4 bytes a parameter each, "
        "divided by the ranks. The first is validated, drawn and becomes the model; the last validation compares "
        "them all, and `sonoshard average` writes another. []: no average.",
    )

    @field_validator("lengths")
    @classmethod
    def _are_different(cls, lengths: list[float]) -> list[float]:
        if len(set(lengths)) < len(lengths):
            raise ValueError(f"ema.lengths={lengths} names a length twice: give each once")
        return lengths


class CheckpointConfig(BaseModel):
    """When the training state is saved, and what is kept of it."""

    model_config = ConfigDict(extra="forbid")

    save_every_steps: int | None = Field(
        500, gt=0, description="Optimizer steps between checkpoints. None: only at the end and when stopped."
    )
    keep_last: int = Field(2, ge=1, description="Newest checkpoints to keep; older ones are deleted after a save.")
    keep_best: bool = Field(
        True,
        description="Keep the one of the lowest validation loss too, of those saved at a step that was validated.",
    )
    is_async: bool = Field(
        False,
        description="Write while training goes on, from a copy in host memory, as large as what a rank saves.",
    )


def refuse_impossible(optimizer: OptimizerConfig, zero: ZeroConfig, *, is_bf16: bool, has_gpu: bool | None) -> None:
    """Raise EngineError, with the reason and what mends it, for settings that do not go together.

    has_gpu: None where it is not known yet, as on a login node.
    """
    if optimizer.master == "stochastic" and not is_bf16:
        raise EngineError(
            "optimizer.master=stochastic updates bf16 weights in place, but this run trains in fp32: set"
            " precision=bf16, or optimizer.master=fp32"
        )
    if optimizer.master == "stochastic" and zero.offload == "optimizer":
        raise EngineError(
            "optimizer.master=stochastic has no master weights to offload, and DeepSpeed offloads bf16 ones only with"
            " its own CPU Adam: set zero.offload=none, or optimizer.master=fp32"
        )
    if optimizer.master == "stochastic" and optimizer.paged:
        raise EngineError(
            "optimizer.paged=true hands a GPU kernel whole slices, but optimizer.master=stochastic works through them"
            " in chunks: set one of them back"
        )
    if zero.offload == "optimizer" and zero.stage == 0:
        raise EngineError(
            "zero.offload=optimizer needs zero.stage 1, 2 or 3, found 0, which divides nothing: set one of them"
        )
    if zero.offload == "optimizer" and optimizer.paged:
        raise EngineError(
            "zero.offload=optimizer keeps the moments in host memory, where optimizer.paged=true has nothing to page:"
            " set one of them back"
        )
    if optimizer.paged and has_gpu is False:
        raise EngineError(
            "optimizer.paged=true needs CUDA's managed memory, and this machine has no GPU: set optimizer.paged=false"
        )
