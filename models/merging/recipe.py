"""What is merged and how: the options of the command, or a YAML file of the same names."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import ModelError
from models.merging.formulas import normalised

Method = Literal["weighted", "soup", "blocks", "slerp", "add-difference", "ties", "dare"]
Part = Literal["unet", "controlnet"]
# By what the safetensors format calls them.
WRITTEN = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
# Share of the elements of a task vector that is kept, where none is given. TIES: section 4 of the paper.
DENSITIES = {"ties": 0.2, "dare": 0.5}
NEED_BASE = ("add-difference", "ties", "dare")
LEAST_SOURCES = {"slerp": 2, "add-difference": 2}
# What a method other than these ignores.
ONLY_FOR = {
    "blocks": ("blocks",),
    "base": NEED_BASE,
    "density": ("ties", "dare"),
    "scale": ("ties", "dare"),
    "seed": ("dare",),
}


class Recipe(BaseModel):
    """How several models become one."""

    model_config = ConfigDict(extra="forbid")

    method: Method = Field(
        "weighted",
        description="weighted: the mean with `weights`. soup: the plain mean. blocks: the mean, with other weights in"
        " some blocks. slerp: along the arc between two. add-difference: the first, and of each other one its weight"
        " times its difference to `base`. ties, dare: `base` and the mean of what training changed, after a trim to the"
        " largest and a vote on the sign (ties), or a random choice (dare).",
    )
    sources: list[str] = Field(
        min_length=1,
        description="Models: a diffusers folder, a stage's folder, a name such as tiny, a hub id in the cache, a"
        " .safetensors file of a whole model, a ControlNet or a LoRA; or a checkpoint's folder, with @raw for the"
        " newest weights, @ema for the first average that it holds (also without anything), or @ema=0.1 for one of"
        " them.",
    )
    weights: list[float] | None = Field(
        None,
        description="One for each source, relative to each other; with add-difference one for each but the first, as"
        " they are. None: all the same; with add-difference 1.",
    )
    blocks: dict[str, list[float]] = Field(
        default_factory=dict,
        description="Weights of the sources in some blocks, by name: down.0 (and on), mid, up.0 (and on), down or up"
        " (all of them), time, conv_in, conv_out, attention, or down.0.attention and the like; the most exact name"
        " counts. Elsewhere `weights` count.",
    )
    base: str | None = Field(
        None, description="The model that the others were made from, named as a source is. For task vectors alone."
    )
    density: float | None = Field(
        None, gt=0, le=1, description="Share of each tensor's changes that is kept. None: 0.2 with ties, 0.5 with dare."
    )
    scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Of the mean of the changes that is put on `base`, with ties, dare."
    )
    seed: int = Field(0, ge=0, description="Of what dare drops, in each tensor.")
    part: Part | None = Field(
        None,
        description="Merge the unet alone, or the controlnet alone. None: the UNet and, where every source has one,"
        " the ControlNet. Everything else is the first source's.",
    )
    dtype: Literal["fp32", "fp16", "bf16"] | None = Field(
        None, description="What the result is stored as. None: as the first source; the sources must then be alike."
    )
    single_file_config: str | None = Field(
        None,
        description="Diffusers folder or cached hub id that gives the architecture of single files, and all that the"
        " file of a ControlNet or a LoRA does not hold: a LoRA is folded into its UNet.",
    )

    @model_validator(mode="after")
    def _fits_the_method(self) -> Recipe:
        method, count = self.method, len(self.sources)
        for name, methods in ONLY_FOR.items():
            if method not in methods and name in self.model_fields_set and getattr(self, name) not in (None, {}):
                raise ValueError(f"{name} is for method {', '.join(methods)} alone, and this is {method}: leave it out")
        if method in NEED_BASE and self.base is None:
            raise ValueError(f"method {method} needs base, the model that the sources were made from")
        if count < LEAST_SOURCES.get(method, 1) or (method == "slerp" and count > 2):
            needed = "two sources" if method == "slerp" else "at least two sources"
            raise ValueError(f"method {method} needs {needed}, got {count}")
        if method == "blocks" and not self.blocks:
            raise ValueError("method blocks needs weights of a block, such as --block mid=0.2,0.8")
        if method == "soup" and self.weights is not None:
            raise ValueError("method soup is the plain mean: leave weights out, or take method weighted")
        self._check_weights()
        return self

    def _check_weights(self) -> None:
        needed = len(self.sources) - (self.method == "add-difference")
        for name, weights in {"weights": self.weights, **self.blocks}.items():
            if weights is None:
                continue
            if len(weights) != needed:
                each = "each source after the first" if self.method == "add-difference" else "each source"
                raise ValueError(f"{name} has {len(weights)} numbers, needed {needed}: one for {each}")
            is_relative = self.method != "add-difference"
            if not all(math.isfinite(weight) and (weight >= 0 or not is_relative) for weight in weights) or (
                is_relative and sum(weights) <= 0
            ):
                raise ValueError(f"{name}={_listed(weights)}: needed numbers of at least 0, not all of them 0")

    @property
    def shares(self) -> list[float]:
        """The weights as they count: of all sources, summing to one; with add-difference of all but the first."""
        if self.method == "add-difference":
            return self.weights or [1.0] * (len(self.sources) - 1)
        return normalised(self.weights or [1.0] * len(self.sources))

    @property
    def kept_density(self) -> float:
        """The share of each tensor's changes that is kept."""
        return self.density or DENSITIES.get(self.method, 1.0)

    def resolved(self) -> dict[str, Any]:
        """Return all settings that counted, as JSON, but the sources."""
        settings: dict[str, Any] = {"method": self.method, "dtype": self.dtype}
        if self.method in NEED_BASE:
            settings["base"] = self.base
        if self.method in DENSITIES:
            settings |= {"density": self.kept_density, "scale": self.scale}
        if self.method == "dare":
            settings["seed"] = self.seed
        if self.blocks:
            settings["blocks"] = {name: normalised(weights) for name, weights in self.blocks.items()}
        return settings


def make_recipe(**settings: Any) -> Recipe:
    """Return a recipe of settings. Raises: ModelError, one line, if a name or a value is wrong."""
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise ModelError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    problems = error.errors()
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key} of a merge (known here: {', '.join(Recipe.model_fields)})"
    if first["type"] == "missing":
        return f"key {key} of a merge is missing"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    if key == "method":
        return f"method {first['input']!r} is unknown (known: {', '.join(get_args(Method))})"
    return f"{key}={first['input']!r}: {first['msg']}"


def _listed(weights: list[float]) -> str:
    return ",".join(f"{weight:g}" for weight in weights)
