"""The chunked CPU step changes no bit; groups, rates and averages are what their sources say."""

from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW, AdEMAMix, Lion
from torch import nn

from distributed import blockwise
from distributed.blockwise import build_optimizer, round_stochastically_
from distributed.config import OptimizerConfig
from distributed.ema import SlicedEma, average_name, power_function_exponent
from distributed.optimizer import learning_rate, parameter_groups


@pytest.mark.parametrize("num_last", [256, 100])
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(
    ("name", "stock_class"), [("adamw8bit", AdamW), ("lion8bit", Lion), ("ademamix8bit", AdEMAMix)]
)
def test_a_step_in_chunks_is_equal_to_the_bit_to_bitsandbytes_own(
    monkeypatch: pytest.MonkeyPatch, name: str, stock_class: Any, bits: int, num_last: int
) -> None:
    monkeypatch.setattr(blockwise, "CPU_CHUNK_ELEMENTS", 1024)
    torch.manual_seed(0)
    weights = torch.randn(5 * 1024 + num_last)
    ours, stock = (nn.Parameter(weights.clone()) for _ in range(2))
    config = OptimizerConfig.model_validate({"name": name, "lr": 1e-2, "weight_decay": 0.1})
    group = {"params": [ours], "weight_decay": config.weight_decay, "optim_bits": bits, "index": 0}
    optimizers = (
        build_optimizer([group], config),
        stock_class([stock], lr=1e-2, weight_decay=0.1, optim_bits=bits, min_8bit_size=0),
    )
    for _ in range(3):
        gradient = torch.randn_like(weights)
        for parameter, optimizer in zip((ours, stock), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, stock)
    states = [optimizer.state[parameter] for parameter, optimizer in zip((ours, stock), optimizers, strict=True)]
    assert states[0].keys() == states[1].keys()
    assert states[0]["step"] == 3
    for kind in [kind for kind in states[0] if kind.startswith(("state", "absmax"))]:
        assert torch.equal(states[0][kind], states[1][kind]), kind
    assert states[0]["state1"].dtype == (torch.uint8 if bits == 8 else torch.float32)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("numel", [432, 2880, 5760])
def test_ademamix_steps_alike_where_a_slice_is_no_whole_blocks(
    monkeypatch: pytest.MonkeyPatch, device: str, numel: int
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    step = functional.optimizer_update_8bit_blockwise

    def checked(*arguments: Any, **settings: Any) -> None:
        _name, gradient, weights, codes = arguments[:4]
        scales = arguments[14]
        # A GPU's kernel looks for the slow mean's scale of element i at (elements + i) / 256, rounded down.
        assert weights.numel() % 256 == 0
        assert gradient.shape == weights.shape == codes.shape[1:]
        assert scales.shape == (2, weights.numel() // 256)
        assert codes.is_contiguous()
        assert scales.is_contiguous()
        step(*arguments, **settings)

    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(numel, generator=generator)
    ours, stock = nn.Parameter(weights.clone().to(device)), nn.Parameter(weights.clone())
    group = {"params": [ours], "weight_decay": 0.1, "optim_bits": 8, "index": 0}
    optimizer = build_optimizer([group], OptimizerConfig(name="ademamix8bit", lr=1e-2))
    other = AdEMAMix([stock], lr=1e-2, weight_decay=0.1, optim_bits=8, min_8bit_size=0)
    for _ in range(3):
        gradient = torch.randn(numel, generator=generator)
        ours.grad, stock.grad = gradient.to(device), gradient.clone()
        with monkeypatch.context() as patch:
            patch.setattr(functional, "optimizer_update_8bit_blockwise", checked)
            optimizer.step()
        other.step()
    # A GPU rounds otherwise, and takes the nearest code where a CPU looks it up in a table.
    tolerance = 0 if device == "cpu" else 2e-2
    torch.testing.assert_close(ours.detach().cpu(), stock.detach(), rtol=tolerance, atol=tolerance)
    for kind in ("absmax1", "absmax2"):
        found, expected = (each.state[p][kind].cpu() for each, p in ((optimizer, ours), (other, stock)))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)


def test_rounding_at_random_keeps_the_mean_and_what_is_exact() -> None:
    noise = torch.Generator().manual_seed(0)
    # A quarter of the way from 1 to the next bfloat16, which is 1 + 2^-7.
    values = torch.full((200_000,), 1 + 2**-9)
    for sign in (1, -1):
        rounded = round_stochastically_(sign * values, noise)
        assert set(rounded.tolist()) == {sign * 1.0, sign * (1 + 2**-7)}
        # The standard error of the mean of 200,000 such draws is 7.6e-6; five of them.
        assert float(rounded.double().mean()) == pytest.approx(sign * (1 + 2**-9), abs=4e-5)
    exact = torch.tensor([0.0, -0.0, 1.5, -3.0, float("inf"), float("-inf")])
    assert torch.equal(round_stochastically_(exact.clone(), noise), exact)
    assert round_stochastically_(torch.tensor([float("nan")]), noise).isnan().all()


def test_small_updates_count_without_a_master() -> None:
    # bfloat16 cannot tell 1 from 1 - 1e-4: rounded to the nearest, a hundred such steps would change nothing.
    config = OptimizerConfig(lr=1e-4, weight_decay=0.0, master="stochastic")
    weights = nn.Parameter(torch.ones(2**16, dtype=torch.bfloat16))
    optimizer = build_optimizer([{"params": [weights], "optim_bits": 8, "index": 0}], config)
    for _ in range(100):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    assert float(weights.detach().double().mean()) == pytest.approx(1 - 100 * 1e-4, abs=1e-3)


def test_slices_of_a_group_round_independently_and_copies_alike() -> None:
    def stepped(offset: int) -> torch.Tensor:
        config = OptimizerConfig(lr=1e-4, weight_decay=0.0, master="stochastic")
        weights = nn.Parameter(torch.ones(2**12, dtype=torch.bfloat16))
        group = {"params": [weights], "optim_bits": 8, "index": 3, "slice_offset": offset}
        optimizer = build_optimizer([group], config)
        for _ in range(20):
            weights.grad = torch.ones_like(weights)
            optimizer.step()
        return weights.detach()

    first, second = stepped(0), stepped(2**12)
    assert torch.equal(first, stepped(0))
    moved = [(weights != 1).float() for weights in (first, second)]
    assert all(0 < float(each.mean()) < 1 for each in moved)
    # Which of 4096 elements moved is drawn anew: the standard error of such a correlation is 0.016; five of them.
    assert abs(float(torch.corrcoef(torch.stack(moved))[0, 1])) < 0.08


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
    ema = SlicedEma(masters, [0.1, 0.2])
    for slices in ema.slices.values():
        slices[0].fill_(99.0)
    for step in range(1, 401):
        masters[0].fill_(float(step))
        ema.update(step)
    for length in (0.1, 0.2):
        gamma = power_function_exponent(length)
        # The mean of t^gamma over [0, 400] lies at (gamma + 1) / (gamma + 2) of it; steps are whole, hence 1 %.
        expected = 400 * (gamma + 1) / (gamma + 2)
        assert ema.slices[average_name(length)][0].tolist() == pytest.approx([expected] * 3, rel=1e-2)
