"""Settings that do not go together are refused, with what was found, what was needed and what mends it."""

from typing import Any

import pytest
from pydantic import ValidationError

from distributed.config import EmaConfig, OptimizerConfig, ZeroConfig, refuse_impossible
from distributed.errors import EngineError


@pytest.mark.parametrize(
    ("optimizer", "zero", "is_bf16", "has_gpu", "message"),
    [
        ({"master": "stochastic"}, {}, False, True, "optimizer.master=stochastic updates bf16 weights in place"),
        ({"master": "stochastic"}, {"offload": "optimizer"}, True, True, "set zero.offload=none, or"),
        ({"master": "stochastic", "paged": True}, {}, True, True, "set one of them back"),
        ({}, {"stage": 0, "offload": "optimizer"}, True, True, "zero.offload=optimizer needs zero.stage 1, 2 or 3"),
        ({"paged": True}, {"offload": "optimizer"}, True, True, "has nothing to page"),
        ({"paged": True}, {}, True, False, "needs CUDA's managed memory, and this machine has no GPU"),
    ],
)
def test_what_does_not_go_together_is_refused(
    optimizer: dict[str, Any], zero: dict[str, Any], is_bf16: bool, has_gpu: bool, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        refuse_impossible(OptimizerConfig(**optimizer), ZeroConfig(**zero), is_bf16=is_bf16, has_gpu=has_gpu)


def test_what_is_not_known_on_a_login_node_is_not_refused() -> None:
    refuse_impossible(OptimizerConfig(paged=True), ZeroConfig(), is_bf16=True, has_gpu=None)


def test_eps_is_refused_where_nothing_uses_it() -> None:
    assert OptimizerConfig().resolved_eps == 1e-8
    assert OptimizerConfig(eps=1e-6).resolved_eps == 1e-6
    with pytest.raises(ValidationError, match=r"optimizer.eps=1e-06 has no use in lion8bit, which has no second"):
        OptimizerConfig(name="lion8bit", eps=1e-6)


def test_betas_are_the_optimizers_own_or_as_many_as_it_has() -> None:
    assert OptimizerConfig(name="lion8bit").resolved_betas == (0.9, 0.99)
    assert OptimizerConfig(name="ademamix8bit", betas=(0.8, 0.9, 0.99)).resolved_betas == (0.8, 0.9, 0.99)
    with pytest.raises(ValidationError, match=r"optimizer.betas has 3 values, adamw8bit needs 2; leave it out"):
        OptimizerConfig(betas=(0.8, 0.9, 0.99))


def test_a_pull_ends_at_the_start() -> None:
    assert OptimizerConfig(lr=1e-3, l2_sp=1000).l2_sp == 1000
    with pytest.raises(ValidationError, match=r"lr \* l2_sp <= 1, so an l2_sp of at most 1000"):
        OptimizerConfig(lr=1e-3, l2_sp=1001)


def test_a_length_is_averaged_once() -> None:
    with pytest.raises(ValidationError, match="names a length twice"):
        EmaConfig(lengths=[0.1, 0.1])
