"""Who computes the graphs of a bundle: torch, or onnxruntime from the written files. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.export.networks import Graph
from tools.export.stored_weights import Precision, read_weights

Array = NDArray[Any]


class Predictor:
    """What draws an image, whoever computes it: arrays in and out, by the names of the graphs."""

    def __init__(self, run: Callable[[str, Mapping[str, Array]], dict[str, Array]]) -> None:
        """run: computes a graph's outputs from its inputs."""
        self.run = run

    def predict(self, latents: Array, timestep: Array, text: Array, hint: Array | None) -> Array:
        """Return the prediction of the UNet, with its ControlNet where there is a hint."""
        inputs = {"latents": latents, "timestep": timestep, "text": text}
        if hint is None:
            return self.run("unet", inputs)["prediction"]
        residuals = self.run("controlnet", inputs | {"hint": hint})
        return self.run("unet_with_control", inputs | residuals)["prediction"]


def torch_predictor(graphs: Mapping[str, Graph]) -> Predictor:
    """Return what computes with torch."""

    def run(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        graph = graphs[name]
        with torch.no_grad():
            found = graph.module(*(torch.from_numpy(np.array(inputs[key])) for key in graph.inputs))
        outputs = (found,) if isinstance(found, Tensor) else found
        return {key: output.numpy() for key, output in zip(graph.outputs, outputs, strict=True)}

    return Predictor(run)


class OnnxPredictor(Predictor):
    """Computes with onnxruntime from the written files; a graph is opened when it is first asked."""

    def __init__(self, folder: Path, graphs: Mapping[str, Mapping[str, str]], precision: Precision) -> None:
        """graphs: "file" and "weights" of each, relative to folder."""
        super().__init__(self._run)
        self._folder, self._graphs, self._precision = folder, graphs, precision
        self._sessions: dict[str, Any] = {}

    def _run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if name == "unet_with_control":
            self._sessions.pop("unet", None)  # it is not asked again, and would hold the weights a second time
        if name not in self._sessions:
            self._sessions[name] = self._session(name)
        session = self._sessions[name]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def _session(self, name: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        graph = self._graphs[name]
        if self._precision != "fp32":
            values = {
                key: onnxruntime.OrtValue.ortvalue_from_numpy(array)
                for key, array in read_weights(self._folder / graph["weights"])
            }
            options.add_external_initializers(list(values), list(values.values()))
        return onnxruntime.InferenceSession(self._folder / graph["file"], options, providers=["CPUExecutionProvider"])
