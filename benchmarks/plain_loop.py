"""A step of a plain PyTorch loop, and one of the engine: what is measured beside each other."""

from collections.abc import Callable

import torch
from bitsandbytes.optim import AdamW, AdamW8bit
from torch import Tensor, nn

from distributed.config import OptimizerConfig
from distributed.engine import Engine
from distributed.optimizer import parameter_groups

# Takes the number of a step and returns a loss.
OfStep = Callable[[int], Tensor]


def plain_step(module: nn.Module, config: OptimizerConfig, loss: OfStep, *, is_fused: bool, is_bf16: bool) -> OfStep:
    """Return a step as one writes it: backward, clip, AdamW as it comes.

    is_fused: torch's fused AdamW in place of bitsandbytes' 32-bit one, which our own is made from. is_bf16: the loss
    is found under torch's autocast to bf16; weights stay in the module's dtype, float32.
    """
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in parameter_groups(module, config)]
    optimizer: torch.optim.Optimizer
    if config.matrix_bits == 8:
        optimizer = AdamW8bit(groups, lr=config.lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True) if is_fused else AdamW(groups, lr=config.lr)
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
