"""The engine: one module under any ZeRO stage, with a bitsandbytes optimizer over flat slices."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.config import OptimizerConfig, Precision, ZeroConfig, refuse_impossible
from distributed.layout import FlatGroup
from distributed.live_bytes import PeakBytes
from distributed.paged_memory import keep_memory
from distributed.placement import bytes_by_kind, training_device, training_dtype
from distributed.rank import Rank
from distributed.stop_request import StoppedOnRequest
from distributed.zero.partitioning import Partitioning, Setting, StepResult
from distributed.zero.stage_0 import Replicated
from distributed.zero.stage_1_2 import PartitionedOptimizer
from distributed.zero.stage_3 import PartitionedParameters


class Engine:
    """Trains one module: for each micro batch, call `network`, `accumulate` its loss and `finish_micro_batch`.

    Its state lies in `groups`: this rank's slices of master weights and moments, of the parameters that require a
    gradient. The others are frozen: they keep their values in the module, whole but for `zero.stage` 3, which divides
    all, and are in no checkpoint, average or `gather`.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        zero: ZeroConfig,
        rank: Rank,
        *,
        precision: Precision,
        micro_size: int,
        accumulation_steps: int,
    ) -> None:
        """Take over `module`, which is in `training_dtype(precision)`; collective.

        micro_size: samples per rank and micro batch; accumulation_steps: micro batches per optimizer step.
        Raises: EngineError for settings that do not go together.
        """
        self.rank = rank
        self.device = training_device(rank)
        self.dtype = training_dtype(precision)
        self.zero_stage = zero.stage
        refuse_impossible(
            optimizer,
            zero,
            is_bf16=self.dtype == torch.bfloat16,
            has_gpu=self.device.type == "cuda",
        )
        self.module = module.to(self.device)
        assert all(p.dtype == self.dtype for p in module.parameters()), "load the module in training_dtype"
        setting = Setting(optimizer, zero, rank, self.device, self.dtype, micro_size, accumulation_steps)
        self._is_measured = False
        self._gradient_bytes = {"gradients": 0}
        self._step_bytes = 0
        self.earlier_peak_bytes = 0  # on CUDA: of the allocator, before it was reset to measure a step
        self._shares_masters = setting.shares_masters
        stages: dict[int, Callable[[nn.Module, Setting], Partitioning]] = {
            0: Replicated,
            1: PartitionedOptimizer,
            2: PartitionedOptimizer,
            3: PartitionedParameters,
        }
        self._state = stages[zero.stage](self.module, setting)

    @property
    def groups(self) -> list[FlatGroup]:
        """This rank's slices of the training state."""
        return self._state.groups

    @property
    def slice_index(self) -> int:
        """Which of a group's slices is this rank's: 0 on every rank where nothing is divided."""
        return self.rank.index if self.groups[0].layout.num_slices > 1 else 0

    @property
    def network(self) -> nn.Module:
        """The module as it must be called; `module` is the bare one."""
        return self._state.network

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of one micro batch's mean loss."""
        self._state.accumulate(loss)

    def finish_micro_batch(self, learning_rate: float) -> StepResult | None:
        """Count one micro batch; return the step's result where it was the last of its global batch."""
        for group in self._state.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._is_measured:
            return self._state.finish_micro_batch()
        # Measured once: they are the same at every step.
        gradient_bytes = bytes_by_kind({"gradients": self._state.gradients()}, self.device)
        if self.device.type == "cuda":
            self.earlier_peak_bytes = max(self.earlier_peak_bytes, torch.cuda.max_memory_allocated(self.device))
        with PeakBytes(self.device) as peak:
            result = self._state.finish_micro_batch()
        if result is not None and not result.is_skipped:
            self._is_measured, self._gradient_bytes, self._step_bytes = True, gradient_bytes, peak.bytes
        return result

    @property
    def num_steps(self) -> int:
        """Optimizer steps taken, which is what AdamW's bias correction counts. Skipped ones do not count."""
        return int(self._state.optimizer.state[self.groups[0].master]["step"])

    def restore(self, num_steps: int) -> None:
        """Say that `groups` now hold the state after `num_steps` steps. Collective."""
        for group in self.groups:
            self._state.optimizer.state[group.master]["step"] = num_steps
        self._state.send([group.master.data for group in self.groups])

    def gather(self, slices: Sequence[Tensor]) -> dict[str, Tensor] | None:
        """Return the trained parameters that `slices` (one per group) make up by name, float32 on the first rank's CPU.

        Other ranks get None. Collective; one group at a time is on the device.
        """
        weights: dict[str, Tensor] = {}
        for group, slice_ in zip(self.groups, slices, strict=True):
            layout = group.layout
            parts = self._gathered(slice_.detach(), layout.num_slices)
            if not self.rank.is_first:
                continue
            places = layout.places()
            for member in layout.members:
                pieces = [piece.of(parts[index]).cpu().float() for index, piece in places[member.name]]
                weights[member.name] = torch.cat(pieces).view(member.shape)
        return weights if self.rank.is_first else None

    def _gathered(self, slice_: Tensor, num_slices: int) -> list[Tensor]:
        """Return every rank's slice on the first rank, an empty list on the others."""
        if num_slices == 1:
            return [slice_]
        slice_ = slice_.to(self.device)  # offloaded ones lie in host memory
        parts = [torch.empty_like(slice_) for _ in range(num_slices)] if self.rank.is_first else None
        dist.gather(slice_, parts)
        return parts or []

    @contextmanager
    def weights_from(self, slices: Sequence[Tensor]) -> Iterator[nn.Module]:
        """Lend the module with the weights of `slices` (one per group) in place of the master's. Collective.

        Where the weights are their own master it keeps a copy of them meanwhile: at stage 0 in the place of the
        gradients, at stages 1 and 2 as large as these were, at stage 3 beside them.
        """
        masters = [group.master.data for group in self.groups]
        if self._shares_masters:
            masters = self._state.set_aside(masters)
        self._state.send(slices)
        try:
            yield self.module
        except StoppedOnRequest:  # which every rank raises
            self._state.send(masters)
            raise
        # Not in a `finally`: after an error on this rank alone, a collective would wait for the others for ever.
        self._state.send(masters)

    def close(self) -> None:
        """Free everything."""
        self._state.close()
        for group in self.groups:
            keep_memory(group.moments.values())
            group.moments.clear()  # another engine's from here on

    def state_bytes(self) -> dict[str, int]:
        """Return the bytes of the training state on this rank, by kind; of what is not on its device as `KIND, host`.

        gradients: those that it held when the first optimizer step began; master: 0 where weights are their own;
        buckets: the most that summing gradients, or that step, took in passing; frozen (weights that do not train),
        start (what L2-SP pulls towards) and offload (what offloading keeps besides) only where there are some.
        """
        kinds = {
            "parameters": self._state.weights(),
            "frozen": self._state.frozen(),
            "start": [group.start for group in self.groups if group.start is not None],
            "master": [] if self._shares_masters else [group.master for group in self.groups],
            "optimizer": [tensor for group in self.groups for tensor in group.moments.values()],
            "offload": self._state.for_offload(),
        }
        kinds = {kind: tensors for kind, tensors in kinds.items() if tensors or kind == "master"}
        buckets = max(self._state.bucket_bytes(), self._step_bytes)
        return {**bytes_by_kind(kinds, self.device), **self._gradient_bytes, "buckets": buckets}
