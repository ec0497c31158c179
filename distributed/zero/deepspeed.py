"""DeepSpeed's own dictionary, computed, and its start."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distributed.config import ZeroConfig
from distributed.optimizer import bucket_elements
from distributed.uncompiled import without_compiler
from distributed.zero.partitioning import Setting, StepResult

# ZeRO-3 keeps parameters of up to so many elements gathered: fetching norms and biases costs more than they weigh.
PERSISTENT_ELEMENTS = 10_000


class SteppedByDeepSpeed:
    """What the stages that DeepSpeed implements have in common: its engine takes the steps."""

    _engine: Any
    _zero: Any

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of one micro batch's mean loss."""
        self._engine.backward(loss)

    def finish_micro_batch(self) -> StepResult | None:
        """Count one micro batch; step and return the result where it was the last of its global batch."""
        is_boundary = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        if not is_boundary:
            return None
        return StepResult(float(self._engine.get_global_grad_norm()), is_skipped=bool(self._zero.overflow))

    def set_aside(self, masters: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of the masters."""
        return [master.clone() for master in masters]


def deepspeed_config(module: nn.Module, setting: Setting) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `module`. The optimizer is the client's, which compiles nothing."""
    is_stochastic = setting.optimizer.master == "stochastic"
    return {
        "train_micro_batch_size_per_gpu": setting.micro_size,
        "gradient_accumulation_steps": setting.accumulation_steps,
        "gradient_clipping": setting.optimizer.clip_norm,
        "zero_allow_untested_optimizer": True,
        # Else an offloaded client optimizer is refused for DeepSpeed's own Adam.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {
            "enabled": setting.dtype == torch.bfloat16,
            # A bf16 master is let through where the moments are said to be small enough for the GPU; ours are.
            "bf16_master_weights_and_grads": is_stochastic,
            "bf16_optimizer_states": is_stochastic,
        },
        "steps_per_print": 2**31,
        "zero_optimization": _zero_section(module, setting),
    }


def initialize(module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> tuple[Any, Any]:
    """Return DeepSpeed's engine and its ZeRO optimizer. Collective."""
    import deepspeed

    with without_compiler():
        engine, zero, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine, zero


def take_names(groups: list[dict[str, Any]]) -> None:
    """Take the parameters' names out of the groups; DeepSpeed wants none."""
    for group in groups:
        del group["param_names"]


def live_elements(zero: ZeroConfig) -> int:
    """Return how many elements ZeRO-3 lets be gathered at once: those in use, and as many ahead of their use."""
    return 2 * zero.allgather_bucket_elements


def _zero_section(module: nn.Module, setting: Setting) -> dict[str, Any]:
    zero = setting.zero
    section: dict[str, Any] = {
        "stage": zero.stage,
        "reduce_bucket_size": bucket_elements(module, zero),
        "allgather_bucket_size": zero.allgather_bucket_elements,
        # Overlap needs a second bucket of gradients; memory comes first here.
        "overlap_comm": False,
    }
    if zero.stage in (1, 2):
        # Contiguous gradients are copied into the bucket and out of it again: 5 % of a step of the built-in UNet on a
        # CPU, and at micro batch 1 a fifth of its peak. Offloading reads them from those copies.
        section["contiguous_gradients"] = zero.offload == "optimizer"
    if zero.offload == "optimizer":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if zero.stage == 3:
        section |= {
            # One flat slice per group of ours, which are bounded already.
            "sub_group_size": 2**62,
            "stage3_prefetch_bucket_size": zero.allgather_bucket_elements,
            "stage3_max_live_parameters": live_elements(zero),
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
        }
    return section
