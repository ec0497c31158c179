"""Weights come back from their file: as they were, as float16, or within half a step of int8."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from models.errors import ModelError
from sampler.weights import expanded, mapped_tensors
from tools.export.stored_weights import Precision, write_weights


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(64, 8, 3, 3, generator=random) * torch.logspace(-4, 2, 64)[:, None, None, None],
        "linear.weight": torch.randn(32, 200, generator=random),
        "odd.weight": torch.randn(3, 5, generator=random),
        "norm.bias": torch.randn(7, generator=random),
        "empty.weight": torch.zeros(64, 64),
    }


@pytest.mark.parametrize("precision", get_args(Precision))
def test_what_the_library_reads_is_what_was_written(
    tensors: dict[str, torch.Tensor], precision: Precision, tmp_path: Path
) -> None:
    found = write_weights(tmp_path / "one.safetensors", tensors, precision)
    by_library = load_file(tmp_path / "one.safetensors")
    assert found.keys() == by_library.keys()
    read = expanded(mapped_tensors(tmp_path / "one.safetensors"))
    assert {name: array.shape for name, array in read.items()} == {name: tuple(t.shape) for name, t in tensors.items()}
    for name, array in read.items():
        stored = by_library[name].float()
        if precision == "fp32":
            assert torch.equal(torch.tensor(array), tensors[name])
        elif name + ".scale" in by_library:
            scale = by_library[name + ".scale"].reshape(-1, *[1] * (stored.ndim - 1))
            assert by_library[name].dtype == torch.int8
            error = (torch.from_numpy(array) - tensors[name]).abs()
            assert (error <= 0.5001 * scale).all(), "symmetric rounding, each channel by its own scale"
        else:
            assert torch.equal(torch.from_numpy(array), tensors[name].half().float())
    write_weights(tmp_path / "two.safetensors", dict(reversed(tensors.items())), precision)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_small_tensors_are_not_quantised(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    found = write_weights(tmp_path / "one.safetensors", tensors, "int8")
    assert {name for name, place in found.items() if place.stored.dtype == "I8"} == {
        *("conv.weight", "linear.weight", "empty.weight")
    }


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"bias holds numbers beyond 65504, .* --precision fp32"):
        write_weights(tmp_path / "one.safetensors", {"bias": torch.tensor([7e4])}, "fp16")
    with pytest.raises(ModelError, match="bias holds numbers that are not finite"):
        write_weights(tmp_path / "one.safetensors", {"bias": torch.tensor([torch.nan])}, "fp32")
