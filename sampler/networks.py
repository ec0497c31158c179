"""The networks of a bundle as onnxruntime sessions, each opened when it is first asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler.bundle import Bundle
from sampler.errors import SamplerError
from sampler.threads import num_threads
from sampler.weights import expanded, mapped_tensors

Array = NDArray[np.float32]

# Closed when one is opened: both UNets would hold the same weights, and a ControlNet is asked with one of them alone.
NOT_BESIDE = {"unet": ("unet_with_control", "controlnet", "hint_embedding"), "unet_with_control": ("unet",)}


class Networks:
    """The graphs of a bundle. Those that are never asked take no time and no memory."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
        """Return what graph `name` gives, by the names of its outputs."""
        session = self._session(name)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def opened(self) -> set[str]:
        """Return the names of the graphs that are in memory."""
        return set(self._sessions)

    def close(self, name: str) -> None:
        """Give back the memory of a graph until it is asked again."""
        self._sessions.pop(name, None)

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            for other in NOT_BESIDE.get(name, ()):
                self.close(other)
            self._sessions[name] = _open(self._bundle, name)
        return self._sessions[name]


def _open(bundle: Bundle, name: str) -> Any:
    """Return the session of a graph. onnxruntime maps float32 weights by itself and refuses files elsewhere."""
    import onnxruntime

    graph = bundle.manifest.values["graphs"][name]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    # Threads of one graph would else wait at full speed while the next graph computes: on 2 busy cores a step with a
    # ControlNet took 7 times as long, and 2.7 times the CPU.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    weights: dict[str, NDArray[np.generic]] = {}  # kept until the session has taken them
    if bundle.manifest.values["precision"] != "fp32":
        weights = expanded(mapped_tensors(bundle.path(graph["weights"])))
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor)) for tensor in weights.values()]
        options.add_external_initializers(list(weights), values)
    try:
        return onnxruntime.InferenceSession(str(bundle.path(graph["file"])), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base of their own
        line = " ".join(str(error).split())
        raise SamplerError(f"onnxruntime {onnxruntime.__version__} cannot open {graph['file']}: {line}") from error
