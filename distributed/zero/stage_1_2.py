"""ZeRO stages 1 and 2 by DeepSpeed, over slices that are whole quantisation blocks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.blockwise import build_optimizer
from distributed.layout import padding_after, whole_layout
from distributed.optimizer import parameter_groups
from distributed.zero.deepspeed import SteppedByDeepSpeed, deepspeed_config, initialize, take_names
from distributed.zero.own_gradients import OwnGradients
from distributed.zero.partitioning import FrozenWhole, Setting, flat_groups, norm_of


class PaddedModule(nn.Module):
    """A model with zeros as further parameters, which make its slices whole quantisation blocks.

    DeepSpeed flattens the parameters of a group as they come and pads the end to 2 elements a rank: blocks would begin
    elsewhere at another world size, and hold elements of two parameters.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.padding = nn.ParameterList()

    def pad(self, group: dict[str, Any], padded_numel: int) -> None:
        """Put zeros after each parameter of `group` that needs them, and at its end up to `padded_numel` elements."""
        spaced = []
        for parameter in group["params"]:
            spaced += [parameter, *self._zeros(padding_after(parameter.numel(), group["optim_bits"]), parameter)]
        missing = padded_numel - sum(p.numel() for p in spaced)
        group["params"] = [*spaced, *self._zeros(missing, spaced[0])]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        return self.inner(*args, **kwargs)

    def _zeros(self, numel: int, like: Tensor) -> list[nn.Parameter]:
        if numel == 0:
            return []
        self.padding.append(nn.Parameter(torch.zeros(numel, dtype=like.dtype, device=like.device)))
        return [self.padding[-1]]


class PartitionedOptimizer(FrozenWhole, SteppedByDeepSpeed):
    """Master weights and moments cut among the ranks; at stage 2 the gradients too."""

    def __init__(self, module: nn.Module, setting: Setting) -> None:
        """Take over `module`. Collective."""
        self._setting = setting
        padded = PaddedModule(module)
        groups = parameter_groups(module, setting.optimizer)
        layouts = [whole_layout(group, setting.rank.world_size) for group in groups]
        for group, layout in zip(groups, layouts, strict=True):
            padded.pad(group, layout.numel)
        take_names(groups)
        self.optimizer = build_optimizer(groups, setting.optimizer)
        self._engine, self._zero = initialize(padded, self.optimizer, deepspeed_config(module, setting))
        self._zero.get_grad_norm_direct = self._gradient_norm
        self._bucket_bytes = 0
        self._joined = self._zero.flatten
        self._zero.flatten = self._join
        if setting.zero.stage == 2 and setting.zero.offload == "none":
            OwnGradients(self._zero)
        self.network: nn.Module = self._engine
        if setting.shares_masters:
            self._share_masters()
        if setting.zero.offload == "optimizer":
            self._share_buffers()
        self.groups = flat_groups(layouts, self._zero.single_partition_of_fp32_groups, self.optimizer, setting)

    def send(self, slices: Sequence[Tensor]) -> None:
        """Give the module the weights that `slices` (one per group, of this rank) make up. Collective."""
        masters = [group.master.data for group in self.groups]
        for group, slice_ in zip(self.groups, slices, strict=True):
            group.master.data = slice_
        self._zero.update_lp_params()
        for group, master in zip(self.groups, masters, strict=True):
            group.master.data = master

    def weights(self) -> list[Tensor]:
        """Return the flat weights, whole on every rank."""
        weights: list[Tensor] = self._zero.bit16_groups_flat
        return weights

    def gradients(self) -> list[Tensor]:
        """Return the gradients that this rank holds between the last backward pass and the step.

        Offloaded, they are those of the masters, in host memory.
        """
        partitioned = self._zero.averaged_gradients.values()
        owners = [*self.network.parameters(), *self._zero.single_partition_of_fp32_groups]
        return [gradient for part in partitioned if part for gradient in part if gradient is not None] + [
            p.grad for p in owners if p.grad is not None
        ]

    def for_offload(self) -> list[Tensor]:
        """Return the buffers through which gradients and weights go, and earlier micro batches' gradients."""
        if self._setting.zero.offload == "none":
            return []
        zero = self._zero
        sums = zero.accumulated_grads_in_cpu.values()
        buffers = [zero.temp_grad_buffer_for_cpu_offload, zero.temp_grad_buffer_for_gpu_offload]
        return [*sums, *buffers, *zero.param_buffer_of_bit16_for_cpu_offload_groups]

    def bucket_bytes(self) -> int:
        """Return the most that buffers for summing gradients took on this rank so far."""
        return self._bucket_bytes

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return gradients as one vector, as DeepSpeed's own does, and count it beside the buffers that there are."""
        joined: Tensor = self._joined(tensors)
        buffers = [buffer for bucket in self._zero.ipg_buckets.values() for buffer in bucket.buffer]
        copy = joined.nbytes if len(tensors) > 1 else 0  # one alone is not copied
        self._bucket_bytes = max(self._bucket_bytes, copy + sum(buffer.nbytes for buffer in buffers))
        return joined

    def close(self) -> None:
        """Free everything. DeepSpeed's hooks keep its engine alive beyond its last reference."""
        self._engine.destroy()

    def _gradient_norm(self, gradients: Sequence[Tensor], _parameters: Any, norm_type: int = 2) -> Tensor:
        """Return the norm of one group's gradients over all ranks; -1, as DeepSpeed has it, where it is not finite.

        DeepSpeed's own makes a copy of each gradient in float64: 236 MB for the largest of Stable Diffusion 1.5.
        """
        assert norm_type == 2
        mine = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
        squares = norm_of(mine).square() if mine else torch.zeros((), device=self._setting.device)
        dist.all_reduce(squares)
        return torch.where(squares.isfinite(), squares.sqrt(), -1.0)

    def _share_buffers(self) -> None:
        """Let the groups, which step one after another, share the buffer in which weights go back to the device.

        DeepSpeed keeps one for each, 2 bytes an element in bf16.
        """
        buffers: list[Tensor] = self._zero.param_buffer_of_bit16_for_cpu_offload_groups
        largest = max(buffers, key=Tensor.numel)
        buffers[:] = [largest[: buffer.numel()] for buffer in buffers]

    def _share_masters(self) -> None:
        """Make each master this rank's part of the weights themselves, where they have the same dtype.

        DeepSpeed makes a copy all the same: 4 bytes an element in fp32, 2 with stochastic rounding.
        """
        masters, parts = self._zero.single_partition_of_fp32_groups, self._zero.parallel_partitioned_bit16_groups
        for master, partitions in zip(masters, parts, strict=True):
            master.data = partitions[self._setting.rank.index].data
        # DeepSpeed's checkpoints, which are not used, keep views of the copy.
        for group in self._zero.bit16_groups:
            for parameter in group:
                parameter._hp_mapping = None
