"""The text encoder of Stable Diffusion 2 in a single file, by diffusers' names: OpenCLIP's, projections stacked.

Layout: `open_clip/transformer.py`, github.com/mlfoundations/open_clip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ModelError
from models.merging.source import FileSource, Stored

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "cond_stage_model.model."
_NAMES = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_MODULES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_STACKED = ("q_proj", "k_proj", "v_proj")


def is_open_clip(file: Path) -> bool:
    """Return whether a file's text encoder is that of Stable Diffusion 2."""
    return any(key.startswith(PREFIX) for key in FileSource(str(file), [file]).tensors)


class OpenClipSource:
    """A text encoder's tensors, the three projections of an attention each a third of one in the file."""

    def __init__(self, label: str, file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Find all tensors. shapes: those of the text encoder that is wanted, which may have fewer layers.

        Raises: ModelError if the file has not all of them.
        """
        self.label = label
        self._file = FileSource(label, [file])
        self._places = {name: _place(name) for name in shapes}
        stored = self._file.tensors
        for name, (key, third) in self._places.items():
            wanted = math.prod(shapes[name]) * (1 if third is None else len(_STACKED))
            if key not in stored or stored[key].numel != wanted:
                found = f"shape {list(stored[key].shape)}" if key in stored else "nothing"
                raise ModelError(
                    f"{file} has {found} where {key} of an OpenCLIP text encoder is wanted; give with"
                    " --single-file-config the model that the file was made from"
                )
        self.tensors = {name: Stored(stored[self._places[name][0]].dtype, shape) for name, shape in shapes.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a tensor, 1-D float32."""
        key, third = self._places[name]
        first = (third or 0) * self.tensors[name].numel
        return self._file.read(key, first + start, first + stop)

    def sha256(self) -> str:
        """Return the hash of the file."""
        return self._file.sha256()


def _place(name: str) -> tuple[str, int | None]:
    """Return the tensor of the file in which one lies, and which third of it that is; None: all of it."""
    name = name.removeprefix("text_model.")
    if name in _NAMES:
        return PREFIX + _NAMES[name], None
    layer, module, end = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name).groups()  # type: ignore[union-attr]
    home = f"{PREFIX}transformer.resblocks.{layer}"
    if module in _MODULES:
        return f"{home}.{_MODULES[module]}.{end}", None
    return f"{home}.attn.in_proj_{end}", _STACKED.index(module.removeprefix("self_attn."))
