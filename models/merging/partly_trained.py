"""A UNet of which a part was trained, as one source: low-rank changes are folded in as it is read."""

# R rank of a low-rank change, M N rows and columns of the matrix that it changes

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from models.merging.source import Source, Stored
from models.trained_part import ADAPTER, LoraConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class PartlyTrained:
    """A UNet of which a part trained: parameters of its own, or low-rank changes, which are folded in.

    Source of the fold: Hu et al. 2021 (arXiv:2106.09685), W + alpha / rank * B A.
    """

    label: str
    base: Source
    trained: Source
    lora: LoraConfig | None

    @cached_property
    def tensors(self) -> Mapping[str, Stored]:
        """The base's tensors, as float32."""
        return {name: Stored("F32", stored.shape) for name, stored in self.base.tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a tensor, 1-D float32."""
        if name in self.trained.tensors:
            return self.trained.read(name, start, stop)
        values = self.base.read(name, start, stop)
        down, up = low_rank_names(name.removesuffix(".weight"))
        if self.lora is None or down not in self.trained.tensors:
            return values
        rank, width = self.trained.tensors[down].shape
        first, last = start // width, -(-stop // width)  # the rows that are wanted, in whole
        down_RN = self.trained.read(down, 0, rank * width).view(rank, width)
        up_MR = self.trained.read(up, first * rank, last * rank).view(-1, rank)
        change = (up_MR @ down_RN).flatten()[start - first * width : stop - first * width]
        return values.add_(change, alpha=self.lora.scale)

    def sha256(self) -> str:
        """Return a hash of both hashes."""
        return hashlib.sha256(f"{self.base.sha256()} {self.trained.sha256()}".encode()).hexdigest()


def low_rank_names(module: str) -> tuple[str, str]:
    """Return the names of A and B of a module, as peft's."""
    return f"{module}.lora_A.{ADAPTER}.weight", f"{module}.lora_B.{ADAPTER}.weight"
