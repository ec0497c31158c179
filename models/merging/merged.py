"""The merge of several networks, one piece of one tensor at a time, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from models.errors import ModelError
from models.merging.blocks import block_weights, names_for
from models.merging.formulas import (
    Drop,
    Trim,
    add_differences,
    elected_mean,
    normalised,
    num_kept,
    slerp_shares,
    weighted_sum,
)
from models.merging.recipe import WRITTEN, Recipe
from models.merging.source import Source, Stored, dtype_of, refuse_strangers

if TYPE_CHECKING:
    from torch import Tensor, nn

# 1 MB in float32: the handful that is in use at a time stays within a processor's cache, and what the allocator keeps
# of them for later (50 MB with pieces of 4 MB) stays small.
PIECE_ELEMENTS = 2**18


class Merged:
    """What a recipe makes of one network of its sources.

    Memory: some ten pieces, whatever the number of sources; with ties also one tensor in float32. That is why ties
    trims each tensor by itself, to the same share, where the paper trims the whole task vector (arXiv:2306.01708, step
    1): for that everything would have to be read twice more, to find one border for all tensors. So a tensor that
    training changed little keeps as large a share of its changes as one that it changed much.
    """

    def __init__(self, recipe: Recipe, sources: Sequence[Source], base: Source | None = None) -> None:
        """Check that they belong together. base: what the recipe's base names, where it has one.

        Raises: ModelError, with the names, if they do not.
        """
        self._recipe, self._sources, self._base = recipe, sources, base
        refuse_strangers(sources, base, any_dtype=recipe.dtype is not None)
        known = {name for tensor in sources[0].tensors for name in names_for(tensor)}
        if strange := sorted(recipe.blocks.keys() - known):
            raise ModelError(f"no tensor is in block {strange[0]} (there are {', '.join(sorted(known))})")

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """What is made, in the order of a file: larger dtypes first, then by name."""
        dtype = WRITTEN.get(self._recipe.dtype or "")
        made = {name: Stored(dtype or of.dtype, of.shape) for name, of in self._sources[0].tensors.items()}
        return dict(sorted(made.items(), key=lambda item: (-dtype_of(item[1].dtype).itemsize, item[0])))

    def all_pieces(self) -> Iterator[Tensor]:
        """Yield the elements of all tensors, in the order of `tensors`, as 1-D float32 pieces of one tensor each."""
        for name in self.tensors:
            yield from self.pieces(name)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the elements of one tensor as 1-D float32 pieces."""
        method, shares = self._recipe.method, self._recipe.shares
        if method in ("ties", "dare"):
            yield from self._changed_base(name, shares)
            return
        if method == "add-difference":
            assert self._base is not None
            for span in self._spans(name):
                first, others = self._sources[0], self._sources[1:]
                base = self._base.read(name, *span)
                yield add_differences(first.read(name, *span), (s.read(name, *span) for s in others), base, shares)
            return
        if method == "blocks":
            shares = normalised(block_weights(name, self._recipe.blocks, shares))
        elif method == "slerp":
            shares = self._arc_shares(name, shares[1])
        for span in self._spans(name):
            yield weighted_sum((source.read(name, *span) for source in self._sources), shares)

    def fill(self, network: nn.Module) -> None:
        """Put what is made into a network on any device, in its dtype; nothing is in memory a second time."""
        for name, parameter in network.named_parameters():
            values, at = parameter.data.view(-1), 0
            for piece in self.pieces(name):
                values[at : at + piece.numel()].copy_(piece)
                at += piece.numel()

    def _spans(self, name: str) -> Iterator[tuple[int, int]]:
        numel = self.tensors[name].numel
        for start in range(0, numel, PIECE_ELEMENTS):
            yield start, min(start + PIECE_ELEMENTS, numel)

    def _arc_shares(self, name: str, t: float) -> list[float]:
        dot = square_a = square_b = 0.0
        for span in self._spans(name):
            a, b = (source.read(name, *span).double() for source in self._sources)
            dot, square_a, square_b = dot + float(a @ b), square_a + float(a @ a), square_b + float(b @ b)
        return list(slerp_shares(dot, square_a, square_b, t))

    def _changed_base(self, name: str, shares: Sequence[float]) -> Iterator[Tensor]:
        """Yield base + scale * the mean of the changes, each of them trimmed (ties) or dropped out of (dare)."""
        assert self._base is not None
        recipe, base = self._recipe, self._base
        is_ties = recipe.method == "ties"
        sparse: list[Trim | Drop] = [
            self._trim(source, name) if is_ties else Drop(recipe.kept_density, recipe.seed, str(number), name)
            for number, source in enumerate(self._sources)
        ]
        mean = elected_mean if is_ties else weighted_sum
        for span in self._spans(name):
            start = base.read(name, *span)
            tasks = (
                make(source.read(name, *span).sub_(start)) for make, source in zip(sparse, self._sources, strict=True)
            )
            yield start + mean(tasks, shares).mul_(recipe.scale)

    def _trim(self, source: Source, name: str) -> Trim:
        import torch

        assert self._base is not None
        magnitudes = torch.empty(self.tensors[name].numel)
        for start, stop in self._spans(name):
            piece = source.read(name, start, stop).sub_(self._base.read(name, start, stop))
            torch.abs(piece, out=magnitudes[start:stop])
        return Trim(magnitudes, num_kept(len(magnitudes), self._recipe.kept_density))
