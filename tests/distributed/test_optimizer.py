"""The chunked CPU step changes no bit; groups, rates and averages are what their sources say."""

import numpy as np
import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from torch import nn

from distributed import optimizer as optimizer_module
from distributed.config import OptimizerConfig
from distributed.ema import ShardedEma, power_function_exponent
from distributed.optimizer import build_optimizer, learning_rate, parameter_groups


def test_a_step_in_slices_is_equal_to_the_bit_to_bitsandbytes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_module, "CPU_STEP_ELEMENTS", 1024)
    torch.manual_seed(0)
    weights = torch.randn(5 * 1024 + 256)
    ours, stock = (nn.Parameter(weights.clone()) for _ in range(2))
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    group = {"params": [ours], "weight_decay": config.weight_decay, "optim_bits": 8}
    optimizers = (
        build_optimizer([group], config),
        AdamW8bit([stock], lr=1e-2, weight_decay=0.1, min_8bit_size=0),
    )
    for _ in range(3):
        gradient = torch.randn_like(weights)
        for parameter, optimizer in zip((ours, stock), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, stock)
    for name in ("state1", "state2", "absmax1", "absmax2"):
        assert torch.equal(optimizers[0].state[ours][name], optimizers[1].state[stock][name])
    assert optimizers[0].state[ours]["state1"].dtype == torch.uint8


def test_only_matrices_decay_and_have_8_bits() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 5), nn.Embedding(6, 7))
    matrices, others = parameter_groups(module, OptimizerConfig(weight_decay=0.1))
    assert matrices["param_names"] == ["0.weight", "2.weight"]
    assert (matrices["weight_decay"], matrices["optim_bits"]) == (0.1, 8)
    assert others["param_names"] == ["0.bias", "1.weight", "1.bias", "2.bias", "3.weight"]
    assert (others["weight_decay"], others["optim_bits"]) == (0.0, 32)
    matrices, _ = parameter_groups(module, OptimizerConfig(name="adamw"))
    assert matrices["optim_bits"] == 32


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 2, 2, 2, 2]), ("linear", [1, 2, 1.4, 0.8, 0.2]), ("cosine", [1, 2, 1.55, 0.65, 0.2])],
)
def test_the_learning_rate_warms_up_and_falls(schedule: str, expected: list[float]) -> None:
    config = OptimizerConfig.model_validate(
        {"lr": 2.0, "warmup_steps": 2, "lr_schedule": schedule, "lr_final_fraction": 0.1}
    )
    rates = [learning_rate(config, step, 5) for step in range(1, 6)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.2])
def test_the_average_has_the_width_that_was_asked_for(length: float) -> None:
    # Weights of the power-function average over training time in [0, 1]: t^gamma, normalised (arXiv:2312.02696, eq. 3).
    gamma = power_function_exponent(length)
    time = np.linspace(0, 1, 200_001)
    density = time**gamma / np.sum(time**gamma)
    mean = np.sum(time * density)
    assert np.sqrt(np.sum((time - mean) ** 2 * density)) == pytest.approx(length, rel=1e-3)


def test_the_average_forgets_where_it_started() -> None:
    masters = [torch.zeros(3)]
    ema = ShardedEma(masters, 0.1)
    ema.slices[0].fill_(99.0)
    for step in range(1, 401):
        masters[0].fill_(float(step))
        ema.update(step)
    gamma = power_function_exponent(0.1)
    # The mean of t^gamma over [0, 400] lies at (gamma + 1) / (gamma + 2) of it; steps are whole numbers, hence 1 %.
    assert ema.slices[0].tolist() == pytest.approx([400 * (gamma + 1) / (gamma + 2)] * 3, rel=1e-2)
