"""A graph as an .onnx file of a few hundred kilobytes, whose weights stay outside, in a .safetensors file beside it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from models.merging.source import Place
from tools.export.networks import Graph

if TYPE_CHECKING:
    from onnx import ModelProto

# onnxruntime 1.14 of 2023 runs it. The exporter that torch recommends (dynamo) took 24 s for the built-in UNet where
# this one takes 0.7 s, and 48 s instead of 7 for one of 70 million parameters; the graphs were equally fast and equally
# near to torch, and those of dynamo refused latents whose size is no multiple of the UNet's downsampling.
OPSET = 18
PREFIX = "network."


def write_graph(graph: Graph, file: Path, weights: Mapping[str, Place], location: str) -> None:
    """Trace a network and write its graph without weights; the same architecture gives the same bytes.

    weights: where its tensors lie, float32, in the file that `location` names relative to the graph's folder.
    """
    content = io.BytesIO()
    axes = {name: value.shape for name, value in graph.inputs.items()} | graph.outputs
    with _quiet(), _parameters_apart(graph.module), torch.no_grad():
        torch.onnx.export(
            graph.module,
            tuple(value.example for value in graph.inputs.values()),
            content,  # type: ignore[arg-type]  # it takes what can be written to
            dynamo=False,
            export_params=False,  # parameters become inputs, and nothing of them is copied
            do_constant_folding=False,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes={
                name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
                for name, shape in axes.items()
            },
        )
    import onnx

    model = onnx.load_from_string(content.getvalue())
    _name_weights(model, graph, weights, location)
    file.write_bytes(model.SerializeToString(deterministic=True))


def _name_weights(model: ModelProto, graph: Graph, weights: Mapping[str, Place], location: str) -> None:
    """Make the inputs that are parameters external initializers, under the parameters' names."""
    from onnx import TensorProto, numpy_helper

    buffers = dict(graph.module.named_buffers())
    inputs = {value.name: value for value in model.graph.input}
    del model.graph.input[:]
    model.graph.input.extend(inputs[name] for name in graph.inputs)
    for name in inputs.keys() - graph.inputs.keys():
        assert name.startswith(PREFIX), name
    for name in sorted(inputs.keys() - graph.inputs.keys()):
        if name in buffers:  # small, and no weight
            model.graph.initializer.append(numpy_helper.from_array(buffers[name].numpy(), name.removeprefix(PREFIX)))
            continue
        own = name.removeprefix(PREFIX)
        place = weights[own]
        tensor = TensorProto(
            name=own, data_type=TensorProto.FLOAT, dims=place.stored.shape, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", location), ("offset", place.at), ("length", place.num_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
    for node in model.graph.node:
        for number, name in enumerate(node.input):
            if name in inputs and name not in graph.inputs:
                node.input[number] = name.removeprefix(PREFIX)


@contextmanager
def _parameters_apart(module: nn.Module) -> Iterator[None]:
    """Keep the exporter from making one of parameters that are equal, as new ones are: the graph is for any weights.

    It compares values unless the outermost module says that it trains; the network inside stays in evaluation mode.
    """
    module.training = True
    try:
        yield
    finally:
        module.training = False


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself and of the Python that it traces."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
