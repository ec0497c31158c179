"""The graphs of a bundle, computed with torch: what their files are compared with. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.export.networks import Graph

Array = NDArray[Any]


class TorchPredictor:
    """Draws as the sampler does, with torch."""

    def __init__(self, graphs: Mapping[str, Graph]) -> None:
        self._graphs = graphs

    def run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return a graph's outputs, by their names."""
        graph = self._graphs[name]
        with torch.no_grad():
            found = graph.module(*(torch.from_numpy(np.array(inputs[key])) for key in graph.inputs))
        outputs = (found,) if isinstance(found, Tensor) else found
        return {key: output.numpy() for key, output in zip(graph.outputs, outputs, strict=True)}

    def predict(self, latents: Array, timestep: Array, text: Array, hint: Array | None) -> Array:
        """Return the prediction of the UNet, with its ControlNet where there is a hint."""
        inputs = {"latents": latents, "timestep": timestep, "text": text}
        if hint is None:
            return self.run("unet", inputs)["prediction"]
        embedded = self.run("hint_embedding", {"hint": hint})
        residuals = self.run("controlnet", inputs | embedded)
        return self.run("unet_with_control", inputs | residuals)["prediction"]
