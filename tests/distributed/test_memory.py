"""What is predicted of Stable Diffusion 1.5, and of a smaller UNet, keeps to the formula of ZeRO with 8-bit moments.

Buckets are included.
"""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.stable_diffusion_config import SMALLER_UNET, UNET
from distributed.config import OptimizerConfig, ZeroConfig
from distributed.memory import predicted_bytes
from distributed.placement import bytes_by_kind

# What padding, scales, copies in passing and buckets may add.
REACH_LIMIT = 1.03


def on_meta(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        network: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    return network


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return on_meta(UNET)


@pytest.fixture(scope="module")
def smaller_unet() -> UNet2DConditionModel:
    return on_meta(SMALLER_UNET)


def predicted(unet: UNet2DConditionModel, world_size: int, *, on_gpu: bool, **optimizer: Any) -> float:
    """Return the bytes a parameter and rank at bf16 and ZeRO-2."""
    kinds = predicted_bytes(
        unet,
        OptimizerConfig.model_validate(optimizer),
        ZeroConfig(stage=2),
        dtype=torch.bfloat16,
        world_size=world_size,
        num_averages=0,
        on_gpu=on_gpu,
    )
    return sum(kinds.values()) / sum(p.numel() for p in unet.parameters())


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize(("master", "divided"), [("fp32", 2 + 4 + 2.03), ("stochastic", 2 + 2.03)])
def test_stable_diffusion_keeps_to_the_formula(
    unet: UNet2DConditionModel, master: str, divided: float, world_size: int, on_gpu: bool
) -> None:
    formula = 2 + divided / world_size
    ratio = predicted(unet, world_size, on_gpu=on_gpu, master=master) / formula
    assert 0.99 < ratio <= REACH_LIMIT


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_smaller_network_keeps_to_it_too(smaller_unet: UNet2DConditionModel, world_size: int, on_gpu: bool) -> None:
    # 70 million parameters: buckets and copies of a fixed size would be an eighth of its state.
    formula = 2 + (2 + 4 + 2.03) / world_size
    assert 0.99 < predicted(smaller_unet, world_size, on_gpu=on_gpu) / formula <= REACH_LIMIT


@pytest.mark.parametrize(("stage", "left"), [(1, 2), (2, 0), (3, 0)])
def test_an_offloaded_state_is_in_host_memory_where_there_is_another(
    unet: UNet2DConditionModel, stage: int, left: int
) -> None:
    both = [
        predicted_bytes(
            unet,
            OptimizerConfig(),
            ZeroConfig.model_validate({"stage": stage, "offload": "optimizer"}),
            dtype=torch.bfloat16,
            world_size=2,
            num_averages=1,
            on_gpu=on_gpu,
        )
        for on_gpu in (True, False)
    ]
    kinds = {"master", "optimizer", "ema", "gradients"} | ({"offload"} if stage < 3 else set())
    assert {kind for kind in both[0] if kind.endswith(", host")} == {f"{kind}, host" for kind in kinds}
    # The gradients that stay: of ZeRO-1 in bf16, as it sums them whole.
    assert both[0]["gradients"] == pytest.approx(left * sum(p.numel() for p in unet.parameters()), rel=0.01)
    assert not any(kind.endswith(", host") for kind in both[1])
    assert sum(both[0].values()) == sum(both[1].values())


def test_what_cuda_pages_counts_as_on_the_device() -> None:
    plain, paged = torch.zeros(10), torch.zeros(20)
    paged.is_paged = True  # type: ignore[attr-defined]
    found = bytes_by_kind({"optimizer": [plain, paged]}, torch.device("cuda"))
    assert found == {"optimizer": 80, "optimizer, host": 40}
