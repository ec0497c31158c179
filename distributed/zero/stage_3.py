"""ZeRO stage 3 by DeepSpeed: the weights are divided too, parameter by parameter, and gathered layer by layer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from distributed.blockwise import build_optimizer
from distributed.layout import QUANTISATION_BLOCK, clear_gaps, each_layout
from distributed.optimizer import parameter_groups
from distributed.zero.deepspeed import SteppedByDeepSpeed, deepspeed_config, initialize, take_names
from distributed.zero.partitioning import Setting, flat_groups, frozen_parameters


class PartitionedParameters(SteppedByDeepSpeed):
    """Weights, gradients, master weights and moments, each parameter cut among the ranks; frozen weights too."""

    def __init__(self, module: nn.Module, setting: Setting) -> None:
        """Take over `module`. Collective."""
        self._setting = setting
        world_size = setting.rank.world_size
        # Parameters whose parts are no whole blocks would shift the blocks of all that follow them in the slice.
        groups = parameter_groups(module, setting.optimizer, divisor=QUANTISATION_BLOCK * world_size)
        layouts = [each_layout(group, world_size) for group in groups]
        take_names(groups)
        self.optimizer = build_optimizer(groups, setting.optimizer)
        self._engine, self._zero = initialize(module, self.optimizer, deepspeed_config(module, setting))
        self.network: nn.Module = self._engine
        self._parts = self._zero.fp16_partitioned_groups_flat
        masters = self._zero.fp32_partitioned_groups_flat
        for layout, master, part in zip(layouts, masters, self._parts, strict=True):
            if setting.shares_masters:
                master.data = part
            clear_gaps(master.data, layout.pieces(setting.rank.index))  # DeepSpeed leaves them as memory was
        self.groups = flat_groups(layouts, masters, self.optimizer, setting)

    def send(self, slices: Sequence[Tensor]) -> None:
        """Give the module the weights that `slices` (one per group, of this rank) make up. Collective."""
        for part, slice_ in zip(self._parts, slices, strict=True):
            part.copy_(slice_)
        # As DeepSpeed's own step does: those that stay gathered are gathered anew.
        self._zero._partition_all_parameters()
        persistent = self._zero.persistent_parameters
        if persistent:
            persistent[0].all_gather(persistent)

    def weights(self) -> list[Tensor]:
        """Return this rank's parts of the weights, and those that stay gathered."""
        return [*self._parts, *(p.data for p in self._zero.persistent_parameters if p.requires_grad)]

    def for_offload(self) -> list[Tensor]:
        """Return nothing: what offloaded gradients take is among them."""
        return []

    def frozen(self) -> list[Tensor]:
        """Return this rank's parts of the weights that do not train, and those that stay gathered."""
        frozen: list[Any] = frozen_parameters(self.network)
        persistent = [p.data for p in self._zero.persistent_parameters if not p.requires_grad]
        return [*(p.ds_tensor for p in frozen), *persistent]

    def gradients(self) -> list[Tensor]:
        """Return the flat buffer of this rank's gradients, which DeepSpeed keeps, and those of offloaded masters."""
        masters = self._zero.fp32_partitioned_groups_flat
        return [self._zero.grad_partitions_flat_buffer, *(m.grad for m in masters if m.grad is not None)]

    def bucket_bytes(self) -> int:
        """Return the bytes of the buffers in which gradients wait to be summed, which DeepSpeed keeps."""
        buffers = [bucket.buffer for bucket in self._zero.ipg_buckets.values()]
        return sum(buffer.nbytes for buffer in buffers if buffer is not None)

    def close(self) -> None:
        """Free everything. DeepSpeed's modules keep its and our optimizer alive: what these hold is taken from them."""
        self._engine.destroy()
        parameters: list[Any] = list(self.network.parameters())
        for tensor in [*parameters, *(p.ds_tensor for p in parameters), *self._parts]:
            tensor.data = tensor.data.new_empty(0)
        for holder in (self._zero, self.optimizer):
            vars(holder).clear()
