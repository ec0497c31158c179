"""The pull towards the starting weights is what its formula says, in every kind of master, and frozen weights stay."""

from typing import Any

import pytest
import torch
from torch import nn

from distributed.blockwise import build_optimizer
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.rank import Rank
from distributed.zero.partitioning import Setting
from distributed.zero.stage_0 import Replicated

RATE = 1e-2


def network() -> nn.Sequential:
    """Return two layers, of which the first is frozen."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 600))
    module[0].requires_grad_(False)
    return module


def replicated(module: nn.Module, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> Replicated:
    setting = Setting(config, ZeroConfig(stage=0), Rank(0, 1, 0), torch.device("cpu"), dtype, 4, 1)
    return Replicated(module.to(dtype), setting)


def loss_of(module: nn.Module, step: int) -> torch.Tensor:
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
    return (module(inputs.to(next(module.parameters()).dtype)) - step).float().square().mean()


def train(state: Replicated, num_steps: int) -> None:
    for step in range(num_steps):
        state.accumulate(loss_of(state.network, step))
        for group in state.optimizer.param_groups:
            group["lr"] = RATE * (step + 1)
        state.finish_micro_batch()


def test_the_pull_is_that_of_a_plain_loop() -> None:
    config = OptimizerConfig(name="adamw", lr=RATE, weight_decay=0.1, l2_sp=8, clip_norm=0)
    ours, plain = network(), network()
    state = replicated(ours, config)
    train(state, 5)
    weight, bias = plain[1].parameters()
    starts = [parameter.detach().clone() for parameter in (weight, bias)]
    # Biases do not decay, and are pulled.
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [bias], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(plain, step).backward()
        rate = RATE * (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        with torch.no_grad():
            for parameter, start in zip((weight, bias), starts, strict=True):
                parameter.sub_(rate * 8 * (parameter - start))
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        # Five float32 steps in another order of operations.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.equal(weight, starts[0])


@pytest.mark.parametrize("name", ["adamw8bit", "lion8bit", "ademamix8bit", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_strong_pull_keeps_weights_near_their_start(name: str, dtype: torch.dtype) -> None:
    moved = {}
    for l2_sp in (0.0, 10.0):
        module = network()
        weight, _ = module.to(dtype)[1].parameters()
        before = weight.detach().clone()
        config = OptimizerConfig.model_validate({"name": name, "lr": 2e-2, "l2_sp": l2_sp, "weight_decay": 0})
        state = replicated(module, config, dtype)
        assert [group.start is not None for group in state.groups] == [l2_sp > 0] * 2
        train(state, 8)
        moved[l2_sp] = float((weight.detach() - before).abs().mean())
    # Rates reach 0.08, so that a pull of 10 takes away a half of the way on average, and 0.8 of it at the end.
    assert 0 < moved[10.0] < moved[0.0] / 3


def test_a_pull_far_below_a_bfloat16s_spacing_counts_without_a_master() -> None:
    config = OptimizerConfig(lr=1e-4, weight_decay=0.0, master="stochastic", l2_sp=1.0)
    weights = nn.Parameter(torch.ones(2**16, dtype=torch.bfloat16))
    start = torch.zeros_like(weights)
    group = {"params": [weights], "optim_bits": 8, "index": 0, "start": start, "l2_sp": config.l2_sp}
    optimizer = build_optimizer([group], config)
    for _ in range(100):
        weights.grad = torch.zeros_like(weights)
        optimizer.step()
    assert float(weights.detach().double().mean()) == pytest.approx(1 - 100 * 1e-4, abs=1e-3)


def test_frozen_weights_are_in_no_group_and_stay() -> None:
    module, before = network(), network()[0].state_dict()
    state = replicated(module, OptimizerConfig(lr=RATE))
    train(state, 2)
    assert {member.name for group in state.groups for member in group.layout.members} == {"1.weight", "1.bias"}
    assert all(torch.equal(before[name], value) for name, value in module[0].state_dict().items())
    assert sum(tensor.nbytes for tensor in state.frozen()) == 4 * (8 * 16 + 16)
