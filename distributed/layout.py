"""Where each parameter lies in the flat state: which elements of which parameters a rank's slice holds.

A group of parameters becomes one flat vector, and every rank gets an equal slice of it. ZeRO cuts it in two ways:

    whole    stages 0 to 2: the parameters stand one after another, and the whole vector is cut
    each     stage 3: every parameter is cut by itself, and a rank's slice is its parts one after another

bitsandbytes quantises a slice in blocks of 256 elements. In a whole cut each parameter with 8-bit moments begins at a
multiple of 256 and every slice is a multiple of 256, so that a block is always the same 256 elements of one parameter:
at every stage and world size. In an each cut that holds where a parameter's parts are multiples of 256.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

# bitsandbytes quantises a moment in blocks of this many elements, each with its own scale (absmax).
QUANTISATION_BLOCK = 256

Cut = Literal["whole", "each"]


@dataclass(frozen=True)
class Member:
    """One parameter of a group. offset: where it begins in the flat vector of a whole cut, in elements."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of parameter `name`, which lie in a rank's slice from its element `at` on."""

    name: str
    start: int
    stop: int
    at: int

    def of(self, slice_: Tensor) -> Tensor:
        """Return its elements, of the slice that it lies in."""
        return slice_[self.at : self.at + self.stop - self.start]


@dataclass(frozen=True)
class GroupLayout:
    """One group, cut into `num_slices` slices of equal size.

    numel: elements of the flat vector of a whole cut, padding included. optim_bits: 8 or 32, of the moments.
    """

    name: str
    members: tuple[Member, ...]
    numel: int
    optim_bits: int
    cut: Cut
    num_slices: int

    @property
    def slice_numel(self) -> int:
        """Elements of one slice, padding included."""
        if self.cut == "whole":
            return self.numel // self.num_slices
        return sum(self._part(member) for member in self.members)

    def pieces(self, slice_index: int) -> list[Piece]:
        """Return what the slice of one rank holds, in order."""
        pieces, at = [], 0
        first = slice_index * self.slice_numel if self.cut == "whole" else 0
        for member in self.members:
            if self.cut == "whole":
                start, stop = first - member.offset, first + self.slice_numel - member.offset
                at = max(0, -start)
            else:
                part = self._part(member)
                start, stop = slice_index * part, (slice_index + 1) * part
            start, stop = max(start, 0), min(stop, member.numel)
            if start < stop:
                pieces.append(Piece(member.name, start, stop, at))
            if self.cut == "each":
                at += self._part(member)
        return pieces

    def places(self) -> dict[str, list[tuple[int, Piece]]]:
        """Return of each parameter, by name, the pieces that make it up in order, each with its slice's index."""
        places: dict[str, list[tuple[int, Piece]]] = {member.name: [] for member in self.members}
        for index in range(self.num_slices):
            for piece in self.pieces(index):
                places[piece.name].append((index, piece))
        return places

    @cached_property
    def is_aligned(self) -> bool:
        """Whether every block of every slice is 256 elements from a multiple of 256 of one parameter."""
        if self.cut == "whole":
            return all(member.offset % QUANTISATION_BLOCK == 0 for member in self.members)
        return all(self._part(member) % QUANTISATION_BLOCK == 0 for member in self.members)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "name": self.name,
            "cut": self.cut,
            "num_slices": self.num_slices,
            "numel": self.numel,
            "optim_bits": self.optim_bits,
            "parameters": [{"name": m.name, "shape": list(m.shape), "offset": m.offset} for m in self.members],
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "GroupLayout":
        """Return the layout that `to_json` wrote."""
        members = tuple(Member(m["name"], tuple(m["shape"]), m["offset"]) for m in stored["parameters"])
        sizes = {key: stored[key] for key in ("name", "numel", "optim_bits", "cut", "num_slices")}
        return cls(members=members, **sizes)

    def _part(self, member: Member) -> int:
        """Return the elements of one rank's part of a parameter in an each cut; the last parts may be padded."""
        return -(-member.numel // self.num_slices)


@dataclass(frozen=True)
class FlatGroup:
    """One group's state on this rank, every tensor flat.

    master: the weights that the optimizer updates, [slice_numel] float32, or bfloat16 where it rounds stochastically.
    moments: by name; uint8 codes or float32 [slice_numel], and the scales of the codes, float32 [blocks]. code_values:
    by the names of the moments that are codes; what each of the 256 codes stands for, float32 [256] in [-1, 1]. start:
    the weights that L2-SP pulls towards, [slice_numel] in the dtype of training; None without a pull.
    """

    layout: GroupLayout
    master: Tensor
    moments: dict[str, Tensor]
    code_values: dict[str, Tensor]
    start: Tensor | None = None


def padding_after(numel: int, optim_bits: int) -> int:
    """Return how many zeros must follow a parameter in a whole cut, so that the next begins with a block."""
    return -numel % QUANTISATION_BLOCK if optim_bits == 8 else 0


def whole_layout(group: dict[str, Any], num_slices: int) -> GroupLayout:
    """Return the layout of an optimizer group of `parameter_groups` that is flattened, padded and cut as a whole."""
    members, offset = [], 0
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        members.append(Member(name, tuple(parameter.shape), offset))
        offset += parameter.numel() + padding_after(parameter.numel(), group["optim_bits"])
    numel = offset + -offset % (QUANTISATION_BLOCK * num_slices)
    return GroupLayout(group["name"], tuple(members), numel, group["optim_bits"], "whole", num_slices)


def each_layout(group: dict[str, Any], num_slices: int) -> GroupLayout:
    """Return the layout of an optimizer group whose parameters are cut one by one."""
    named = zip(group["param_names"], group["params"], strict=True)
    members = tuple(Member(name, tuple(parameter.shape), 0) for name, parameter in named)
    numel = sum(member.numel for member in members)
    return GroupLayout(group["name"], members, numel, group["optim_bits"], "each", num_slices)


def flatten_into(flat: Tensor, layout: GroupLayout, parameters: Sequence[nn.Parameter]) -> None:
    """Copy the parameters of a whole cut into `flat` and make them views of it; the padding stays as it is."""
    for member, parameter in zip(layout.members, parameters, strict=True):
        view = flat[member.offset : member.offset + member.numel].view(member.shape)
        view.copy_(parameter.data)
        parameter.data = view


def clear_gaps(flat: Tensor, pieces: Sequence[Piece]) -> None:
    """Set to 0 what no piece covers of a rank's slice."""
    at = 0
    for piece in [*pieces, Piece("", 0, 0, flat.numel())]:
        flat[at : piece.at] = 0
        at = piece.at + piece.stop - piece.start
