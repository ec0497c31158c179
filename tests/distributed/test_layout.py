"""Slices hold every element of every parameter once, and blocks of whole cuts are blocks of parameters."""

from hypothesis import given
from hypothesis import strategies as st
from torch import arange, cat, empty, full, nn, ones

from distributed.layout import QUANTISATION_BLOCK, GroupLayout, clear_gaps, each_layout, flatten_into, whole_layout

sizes = st.lists(st.integers(1, 2000), min_size=1, max_size=6)


def group(numels: list[int], bits: int) -> dict[str, object]:
    parameters = [nn.Parameter(ones(numel)) for numel in numels]
    names = [f"p{index}" for index in range(len(numels))]
    return {"name": "matrices", "params": parameters, "param_names": names, "optim_bits": bits}


def layouts(numels: list[int], bits: int, num_slices: int) -> list[GroupLayout]:
    return [cut(group(numels, bits), num_slices) for cut in (whole_layout, each_layout)]


@given(numels=sizes, bits=st.sampled_from([8, 32]), num_slices=st.integers(1, 5))
def test_every_element_lies_in_one_slice(numels: list[int], bits: int, num_slices: int) -> None:
    for layout in layouts(numels, bits, num_slices):
        seen: list[tuple[str, int]] = []
        for index in range(num_slices):
            taken = set()
            for piece in layout.pieces(index):
                seen += [(piece.name, element) for element in range(piece.start, piece.stop)]
                taken |= set(range(piece.at, piece.at + piece.stop - piece.start))
            assert not taken or max(taken) < layout.slice_numel
            assert len(taken) == sum(piece.stop - piece.start for piece in layout.pieces(index))
        assert sorted(seen) == sorted((f"p{index}", n) for index, numel in enumerate(numels) for n in range(numel))


@given(numels=sizes, bits=st.sampled_from([8, 32]), num_slices=st.integers(1, 5))
def test_a_parameter_is_put_together_from_its_places(numels: list[int], bits: int, num_slices: int) -> None:
    for layout in layouts(numels, bits, num_slices):
        slices = [full((layout.slice_numel,), -1) for _ in range(num_slices)]
        for index, slice_ in enumerate(slices):
            for piece in layout.pieces(index):
                piece.of(slice_).copy_(arange(piece.start, piece.stop))
        for name, places in layout.places().items():
            whole = cat([piece.of(slices[index]) for index, piece in places])
            assert whole.tolist() == list(range(numels[int(name[1:])]))


@given(numels=sizes, num_slices=st.integers(1, 5))
def test_blocks_of_a_whole_cut_are_blocks_of_parameters(numels: list[int], num_slices: int) -> None:
    layout = whole_layout(group(numels, 8), num_slices)
    assert layout.is_aligned
    assert layout.slice_numel % QUANTISATION_BLOCK == 0
    for index in range(num_slices):
        assert all((piece.start - piece.at) % QUANTISATION_BLOCK == 0 for piece in layout.pieces(index))


def test_an_each_cut_is_aligned_where_all_parts_are_whole_blocks() -> None:
    assert each_layout(group([1024, 512], 8), 2).is_aligned
    assert not each_layout(group([1024, 512], 8), 3).is_aligned
    assert not each_layout(group([1000, 512], 8), 1).is_aligned


@given(numels=sizes, bits=st.sampled_from([8, 32]), num_slices=st.integers(1, 5))
def test_a_layout_is_read_as_it_was_written(numels: list[int], bits: int, num_slices: int) -> None:
    for layout in layouts(numels, bits, num_slices):
        assert GroupLayout.from_json(layout.to_json()) == layout


def test_parameters_become_views_and_gaps_are_cleared() -> None:
    settings = group([300, 20], 8)
    layout = whole_layout(settings, 2)
    flat = empty(layout.numel).fill_(7)
    parameters = settings["params"]
    assert isinstance(parameters, list)
    flatten_into(flat, layout, parameters)
    clear_gaps(flat, whole_layout(settings, 1).pieces(0))
    assert flat.sum() == 320
    parameters[1].data.fill_(3)
    assert flat.sum() == 300 + 60
