"""A checkpoint's slices read by parameter, whatever stage and world size it was saved at.

Weights, averages and 32-bit moments are copied element by element. 8-bit moments are copied block by block where both
layouts begin blocks at multiples of 256 of a parameter; else their values are quantised anew, which moves a value by at
most half the step to the next code (ZeRO-3 at another world size, for parameters that do not divide into blocks).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from distributed.checkpoint import slices_name
from distributed.layout import QUANTISATION_BLOCK, FlatGroup, GroupLayout, Piece
from distributed.slice_file import SliceFile
from distributed.uncompiled import dequantize_blockwise

# What is expanded to float32 at a time.
PART_ELEMENTS = 2**22


def slices_key(group: int, kind: str) -> str:
    """Return the key of one kind of tensor of one group in such a file."""
    return f"{group:03d}.{kind}"


class StoredState:
    """The slices of one checkpoint."""

    def __init__(self, folder: Path, layouts: list[dict[str, Any]]) -> None:
        """Open the files. layouts: the groups of the checkpoint's manifest."""
        self.layouts = [GroupLayout.from_json(stored) for stored in layouts]
        num_slices = self.layouts[0].num_slices
        self._files = [SliceFile(folder / slices_name(index, num_slices)) for index in range(num_slices)]
        self._places: dict[str, tuple[int, list[tuple[int, Piece]]]] = {}
        for number, layout in enumerate(self.layouts):
            self._places |= {name: (number, places) for name, places in layout.places().items()}

    def parameter(self, name: str, kind: str) -> Tensor:
        """Return one whole parameter's `kind` (`master`, or an average's name), float32 in its shape."""
        number, _ = self._places[name]
        member = next(member for member in self.layouts[number].members if member.name == name)
        return self.elements(name, kind, 0, member.numel).view(member.shape)

    def elements(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of one parameter's `kind`, 1-D float32."""
        values = torch.empty(stop - start)
        self._read(values, Piece(name, start, stop, 0), kind)
        return values

    def load(self, group: FlatGroup, number: int, slice_index: int, averages: dict[str, Tensor]) -> None:
        """Fill the state of the engine's group `number`, and `averages` by name, with what is stored of them."""
        floats = {"master": group.master.data, **averages}
        floats |= {kind: tensor for kind, tensor in group.moments.items() if self._is_plain(kind, group)}
        if number < len(self.layouts) and self.layouts[number] == group.layout:
            for kind, target in {**floats, **group.moments}.items():
                self._files[slice_index].read_into(target, slices_key(number, kind), 0)
            return
        pieces = group.layout.pieces(slice_index)
        for kind, target in floats.items():
            target.zero_()
            for piece in pieces:
                self._read(target, piece, kind)
        are_aligned = group.layout.is_aligned and all(self._layout_of(piece).is_aligned for piece in pieces)
        for kind in group.code_values:
            if are_aligned:
                self._copy_blocks(group, kind, pieces)
            else:
                self._quantise(group, kind, pieces)

    @staticmethod
    def _is_plain(kind: str, group: FlatGroup) -> bool:
        return kind not in group.code_values and not kind.startswith("absmax")

    def _layout_of(self, piece: Piece) -> GroupLayout:
        return self.layouts[self._places[piece.name][0]]

    def _overlaps(self, wanted: Piece) -> Iterator[tuple[SliceFile, int, int, int, int]]:
        """Yield file, group, first stored element, first wanted element of the slice and length of each common part."""
        number, places = self._places[wanted.name]
        for index, stored in places:
            start, stop = max(wanted.start, stored.start), min(wanted.stop, stored.stop)
            if start < stop:
                source, target = stored.at + start - stored.start, wanted.at + start - wanted.start
                yield self._files[index], number, source, target, stop - start

    def _read(self, target: Tensor, wanted: Piece, kind: str) -> None:
        for file, number, source, at, length in self._overlaps(wanted):
            file.read_into(target[at : at + length], slices_key(number, kind), source)

    def _copy_blocks(self, group: FlatGroup, kind: str, pieces: list[Piece]) -> None:
        """Copy codes and scales. Between parameters lie zeros, in blocks of which some are shared with a parameter."""
        codes, scales = group.moments[kind], group.moments[scales_of(kind)]
        codes.fill_(int(group.code_values[kind].abs().argmin()))
        scales.zero_()
        for piece in pieces:
            for file, number, source, at, length in self._overlaps(piece):
                file.read_into(codes[at : at + length], slices_key(number, kind), source)
                blocks = slice(at // QUANTISATION_BLOCK, -(-(at + length) // QUANTISATION_BLOCK))
                file.read_into(scales[blocks], slices_key(number, scales_of(kind)), source // QUANTISATION_BLOCK)

    def _quantise(self, group: FlatGroup, kind: str, pieces: list[Piece]) -> None:
        """Quantise the stored values by the blocks of this slice."""
        values = torch.zeros(group.layout.slice_numel)
        code_values = group.code_values[kind].cpu()
        for piece in pieces:
            for file, number, source, at, length in self._overlaps(piece):
                target = values[at : at + length]
                for start in range(0, length, PART_ELEMENTS):
                    part = target[start : start + PART_ELEMENTS]
                    part.copy_(_stored_values(file, number, kind, code_values, source + start, part.numel()))
        codes, scales = group.moments[kind], group.moments[scales_of(kind)]
        for start in range(0, values.numel(), PART_ELEMENTS):
            nearest, of_blocks = _nearest_codes(values[start : start + PART_ELEMENTS], code_values)
            codes[start : start + len(nearest)].copy_(nearest)
            first = start // QUANTISATION_BLOCK
            scales[first : first + len(of_blocks)].copy_(of_blocks)


def scales_of(kind: str) -> str:
    """Return the name of the scales of a moment's codes."""
    return kind.replace("state", "absmax")


def _nearest_codes(values: Tensor, code_values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes nearest to `values` and their blocks' scales; code_values: what each code stands for, sorted.

    On a CPU bitsandbytes' own looks codes up in a table, which near zero is up to two steps off.
    """
    of_blocks = pad(values, (0, -values.numel() % QUANTISATION_BLOCK)).view(-1, QUANTISATION_BLOCK)
    scales = of_blocks.abs().amax(dim=1)
    # A block of zeros has a scale of 0.
    fractions = of_blocks / scales.clamp_min(torch.finfo(scales.dtype).tiny).unsqueeze(1)
    middles = (code_values[1:] + code_values[:-1]) / 2
    codes = torch.bucketize(fractions, middles, out_int32=True).view(-1)[: values.numel()]
    return codes.to(torch.uint8), scales


def _stored_values(file: SliceFile, group: int, kind: str, code_values: Tensor, start: int, length: int) -> Tensor:
    """Return what the stored codes [start, start + length) stand for, float32."""
    first = start // QUANTISATION_BLOCK
    last = -(-(start + length) // QUANTISATION_BLOCK)
    key = slices_key(group, kind)
    codes = torch.zeros((last - first) * QUANTISATION_BLOCK, dtype=torch.uint8)
    num_stored = min(codes.numel(), file.numel(key) - first * QUANTISATION_BLOCK)
    file.read_into(codes[:num_stored], key, first * QUANTISATION_BLOCK)
    scales = torch.empty(last - first)
    file.read_into(scales, slices_key(group, scales_of(kind)), first)
    values = dequantize_blockwise(codes, absmax=scales, code=code_values, blocksize=QUANTISATION_BLOCK)
    begin = start - first * QUANTISATION_BLOCK
    return values[begin : begin + length]
