"""A step of a plain PyTorch loop, and one of the engine: what is measured beside each other."""

from collections.abc import Callable
from typing import Literal

import bitsandbytes
import torch
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn

from distributed.config import OptimizerConfig
from distributed.engine import Engine
from distributed.optimizer import parameter_groups

# Takes the number of a step and returns a loss.
OfStep = Callable[[int], Tensor]


# 32-bit ones: torch's as it comes and its fastest, and that of which our own is made.
AdamW32 = Literal["torch", "fused", "bitsandbytes"]


def plain_step(
    module: nn.Module, config: OptimizerConfig, loss: OfStep, *, is_bf16: bool, adamw: AdamW32 = "torch"
) -> OfStep:
    """Return a step as one writes it: backward, clip, AdamW.

    is_bf16: the loss is found under torch's autocast to bf16; weights stay in the module's dtype, float32. adamw: which
    one, where the configuration wants 32 bits; 8-bit ones are bitsandbytes'.
    """
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in parameter_groups(module, config)]
    optimizer: torch.optim.Optimizer
    if config.matrix_bits == 8:
        optimizer = AdamW8bit(groups, lr=config.lr)
    elif adamw == "bitsandbytes":
        optimizer = bitsandbytes.optim.AdamW(groups, lr=config.lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True if adamw == "fused" else None)
    device_type = next(module.parameters()).device.type

    def step(number: int) -> Tensor:
        with torch.autocast(device_type, torch.bfloat16, enabled=is_bf16):
            found = loss(number)
        found.backward()
        nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return found.detach()

    return step


def engine_step(engine: Engine, config: OptimizerConfig, loss: OfStep) -> OfStep:
    """Return a step of the engine."""

    def step(number: int) -> Tensor:
        found = loss(number)
        engine.accumulate(found)
        engine.finish_micro_batch(config.lr)
        return found.detach()

    return step
