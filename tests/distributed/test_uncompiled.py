"""Libraries that decorate with torch.compile what nothing here calls, imported without it."""

import subprocess
import sys

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


@pytest.mark.slow
def test_a_rank_does_not_load_the_compiler() -> None:
    """In the order of a rank's own imports: diffusers, which imports bitsandbytes too, comes later."""
    program = (
        "import sys, launch.train, launch.networks, distributed.zero.deepspeed\n"
        "from diffusers import UNet2DConditionModel\n"
        "print('bitsandbytes' in sys.modules, 'torch._inductor.compile_fx' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "True False"
