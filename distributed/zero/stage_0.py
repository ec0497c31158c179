"""Training without ZeRO: every rank holds everything, and gradients are averaged over the ranks before a step.

DeepSpeed's own stage 0 is not used: in bf16 it begins with a step on zero gradients, in fp32 it reports no norm and
does not see gradients that are not finite. What is left of it is this file.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.blockwise import build_optimizer
from distributed.layout import flatten_into, whole_layout
from distributed.optimizer import parameter_groups
from distributed.zero.partitioning import FrozenWhole, Setting, StepResult, flat_groups, norm_of


class Replicated(FrozenWhole):
    """Flat weights and gradients, of which those of the module that train are views."""

    def __init__(self, module: nn.Module, setting: Setting) -> None:
        """Take over `module`. Collective."""
        self._setting = setting
        self._num_micro_batches = 0
        self.network = module
        groups = parameter_groups(module, setting.optimizer)
        layouts = [whole_layout(group, num_slices=1) for group in groups]
        self._weights = [torch.zeros(layout.numel, dtype=setting.dtype, device=setting.device) for layout in layouts]
        self._gradients = [torch.zeros_like(flat) for flat in self._weights]
        self._views = []
        for layout, group, weights, gradients in zip(layouts, groups, self._weights, self._gradients, strict=True):
            flatten_into(weights, layout, group["params"])
            for member, parameter in zip(layout.members, group["params"], strict=True):
                view = gradients[member.offset : member.offset + member.numel].view(member.shape)
                self._views.append((parameter, view))
            if setting.rank.world_size > 1:
                dist.broadcast(weights, 0)
            group["params"] = [weights if setting.shares_masters else weights.float()]
        masters = [group["params"][0] for group in groups]
        self.optimizer = build_optimizer(groups, setting.optimizer)
        self.groups = flat_groups(layouts, masters, self.optimizer, setting)

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of one micro batch's mean loss."""
        for parameter, view in self._views:
            parameter.grad = view
        (loss / self._setting.accumulation_steps).backward()

    def finish_micro_batch(self) -> StepResult | None:
        """Count one micro batch; step and return the result where it was the last of its global batch."""
        self._num_micro_batches += 1
        if self._num_micro_batches % self._setting.accumulation_steps:
            return None
        if self._setting.rank.world_size > 1:
            for gradients in self._gradients:
                gradients.div_(self._setting.rank.world_size)
                dist.all_reduce(gradients)
        norm = float(norm_of(self._gradients))
        is_skipped = not math.isfinite(norm)
        if not is_skipped:
            self._step(norm)
        for gradients in self._gradients:
            gradients.zero_()
        return StepResult(grad_norm=norm, is_skipped=is_skipped)

    def for_offload(self) -> list[Tensor]:
        """Return nothing: this stage does not offload."""
        return []

    def send(self, slices: Sequence[Tensor]) -> None:
        """Give the module the weights that `slices` (one per group) make up."""
        for weights, gradients, slice_ in zip(self._weights, self._gradients, slices, strict=True):
            weights.copy_(slice_)
            if slice_ is gradients:  # what was set aside
                gradients.zero_()

    def set_aside(self, masters: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of the masters, which take no memory: the gradients, all zero between two steps, hold them."""
        return [gradients.copy_(master) for gradients, master in zip(self._gradients, masters, strict=True)]

    def weights(self) -> list[Tensor]:
        """Return the flat weights."""
        return self._weights

    def gradients(self) -> list[Tensor]:
        """Return the flat gradients."""
        return self._gradients

    def bucket_bytes(self) -> int:
        """Return 0: gradients are summed where they lie."""
        return 0

    def close(self) -> None:
        """Nothing outlives the last reference."""

    @torch.no_grad()
    def _step(self, norm: float) -> None:
        limit = self._setting.optimizer.clip_norm
        scale = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
        groups = self.optimizer.param_groups
        for group, weights, gradients in zip(groups, self._weights, self._gradients, strict=True):
            (master,) = group["params"]
            # One group at a time: where the master has another dtype this is a copy. Else it is the gradients
            # themselves, scaled where they lie; they are done with after the step.
            master.grad = gradients.to(master.dtype).mul_(scale)
            self.optimizer.param_groups = [group]
            self.optimizer.step()
            master.grad = None
            if master is not weights:
                weights.copy_(master)
        self.optimizer.param_groups = groups
