"""Managed memory is taken again, since bitsandbytes cannot free it; here the host's own stands for it."""

import pytest
import torch
from torch import Tensor

from distributed import paged_memory
from distributed.paged_memory import is_paged, keep_memory, zeros_of_kept

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_memory, "_KEPT", [])


@pytest.fixture
def double() -> Tensor:
    tensor = torch.ones(2, 1000)
    tensor.is_paged = True  # type: ignore[attr-defined]
    return tensor


def rows(tensor: Tensor) -> list[Tensor]:
    """Return the rows of a paged tensor as the engine's groups have them."""
    found = list(tensor)
    for row in found:
        row.is_paged = True
    return found


def test_kept_memory_is_zeros_of_any_kind_that_fits(double: Tensor) -> None:
    assert zeros_of_kept((10,), torch.uint8, GPU) is None, "nothing is kept yet"
    keep_memory(rows(double))
    assert zeros_of_kept((2001,), torch.float32, GPU) is None
    part = zeros_of_kept((2, 500), torch.uint8, GPU)
    assert part is not None
    assert part.data_ptr() == double.data_ptr()
    assert part.shape == (2, 500)
    assert not part.any()
    assert is_paged(part)
    assert part.page_deviceid == 0  # type: ignore[attr-defined]
    assert zeros_of_kept((1,), torch.uint8, GPU) is None, "it is one stage's at a time"
    keep_memory(rows(part))
    whole = zeros_of_kept((2, 1000), torch.float32, GPU)
    assert whole is not None, "all of it came back with its part"
    assert not whole.any()


def test_the_smallest_that_fits_is_taken(double: Tensor) -> None:
    small = torch.ones(600)
    small.is_paged = True  # type: ignore[attr-defined]
    keep_memory([double, small, torch.ones(5000)])
    found = zeros_of_kept((600,), torch.float32, GPU)
    assert found is not None
    assert found.data_ptr() == small.data_ptr()
    assert zeros_of_kept((5000,), torch.float32, GPU) is None, "what is not paged frees itself"
