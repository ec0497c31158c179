"""Libraries that decorate with torch.compile what nothing here calls, imported without it."""

import pytest
import torch

from distributed.uncompiled import without_compiler


def double(value: int) -> int:
    return 2 * value


def test_within_it_every_form_of_the_decorator_leaves_a_function_as_it_is() -> None:
    with without_compiler():
        assert torch.compile(double) is double
        assert torch.compile(double, dynamic=False) is double
        assert torch.compile(dynamic=False)(double) is double


def test_the_compiler_is_back_afterwards_and_after_an_error() -> None:
    before = torch.compile
    with without_compiler():
        pass
    assert torch.compile is before
    with pytest.raises(ImportError), without_compiler():
        raise ImportError
    assert torch.compile is before
