"""Average the UNets of several models, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from models.base import ModelConfig, open_base
from models.errors import ModelError
from models.weights import weight_files

if TYPE_CHECKING:
    from torch import Tensor


def averaged_unet(weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the weighted mean of the UNets of diffusers folders, by parameter, float32 on the CPU.

    weights: of each folder, relative ones. One tensor of each model is in memory at a time beside the result.
    Source: Wortsman et al. 2022 (arXiv:2203.05482), model soups.
    Raises: ModelError, naming the first, if the models differ in a parameter's name or shape.
    """
    from safetensors import safe_open

    total = sum(weights.values())
    with ExitStack() as opened:
        sources = []
        for folder in weights:
            places: dict[str, Any] = {}
            for path in weight_files(open_base(ModelConfig(base=folder)).folder, "unet").paths:
                file = opened.enter_context(safe_open(path, framework="pt"))
                places |= dict.fromkeys(file.keys(), file)
            sources.append(places)
        averaged: dict[str, Tensor] = {}
        for folder, places in zip(weights, sources, strict=True):
            if different := sorted(places.keys() ^ sources[0].keys()):
                raise ModelError(f"{folder} and {next(iter(weights))} differ in {different[0]}: they are no kin")
        for name in sources[0]:
            for (folder, weight), places in zip(weights.items(), sources, strict=True):
                tensor = places[name].get_tensor(name).float() * (weight / total)
                if name in averaged and averaged[name].shape != tensor.shape:
                    raise ModelError(f"{folder} and {next(iter(weights))} differ in the shape of {name}")
                averaged[name] = averaged[name].add_(tensor) if name in averaged else tensor
    return averaged
