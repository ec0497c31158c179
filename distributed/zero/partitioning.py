"""What every ZeRO stage offers the engine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distributed.config import OptimizerConfig, ZeroConfig
from distributed.layout import FlatGroup, GroupLayout
from distributed.paged_memory import is_paged
from distributed.rank import Rank


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: the gradient's norm before clipping, and whether it was skipped as not finite."""

    grad_norm: float
    is_skipped: bool


def shares_masters(optimizer: OptimizerConfig, zero: ZeroConfig, dtype: torch.dtype) -> bool:
    """Return whether weights of `dtype` are their own master: fp32, or rounded stochastically, and on the device."""
    return zero.offload == "none" and (dtype == torch.float32 or optimizer.master == "stochastic")


@dataclass(frozen=True)
class Setting:
    """What a stage is built from. dtype: of the weights; accumulation_steps: micro batches per optimizer step."""

    optimizer: OptimizerConfig
    zero: ZeroConfig
    rank: Rank
    device: torch.device
    dtype: torch.dtype
    micro_size: int
    accumulation_steps: int

    @property
    def shares_masters(self) -> bool:
        """Whether the weights are their own master."""
        return shares_masters(self.optimizer, self.zero, self.dtype)


class FrozenWhole:
    """What stages 0 to 2 do with the weights that do not train: every rank has them whole."""

    network: nn.Module

    def frozen(self) -> list[Tensor]:
        """Return the weights that do not train."""
        return [parameter.data for parameter in frozen_parameters(self.network)]


class Partitioning(Protocol):
    """One module's training state, divided as a ZeRO stage does it. All but `groups` is collective."""

    network: nn.Module
    groups: list[FlatGroup]
    optimizer: torch.optim.Optimizer

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of one micro batch's mean loss."""

    def finish_micro_batch(self) -> StepResult | None:
        """Count one micro batch; step and return the result where it was the last of its global batch."""

    def send(self, slices: Sequence[Tensor]) -> None:
        """Give the module the weights that `slices` (one per group, of this rank) make up."""

    def set_aside(self, masters: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of masters that are the weights themselves, to be sent back before the next micro batch."""

    def weights(self) -> list[Tensor]:
        """Return the tensors that hold the weights that train on this rank between two steps. Not collective."""

    def frozen(self) -> list[Tensor]:
        """Return the tensors that hold the module's other weights on this rank between two steps. Not collective."""

    def gradients(self) -> list[Tensor]:
        """Return the gradients that this rank holds now. Not collective."""

    def for_offload(self) -> list[Tensor]:
        """Return what offloading keeps besides masters, moments and gradients. Not collective."""

    def bucket_bytes(self) -> int:
        """Return the most that buffers for summing gradients took on this rank so far. Not collective."""

    def close(self) -> None:
        """Free what would outlive the last reference."""


def flat_groups(
    layouts: Sequence[GroupLayout], masters: Sequence[Tensor], optimizer: torch.optim.Optimizer, setting: Setting
) -> list[FlatGroup]:
    """Return the groups' state, with moments of zeros; called while the masters are what the module came with.

    bitsandbytes makes its state at the first step; made now, a checkpoint can be loaded into it.
    """
    groups = []
    for index, (layout, master) in enumerate(zip(layouts, masters, strict=True)):
        # ZeRO-3 takes the parameters out of the groups between two steps; bitsandbytes looks them up.
        settings = optimizer.param_groups[index]
        kept, settings["params"] = settings["params"], [master]
        optimizer.init_state(settings, master, index, 0)  # type: ignore[attr-defined]
        settings["params"] = kept
        slice_index = setting.rank.index if layout.num_slices > 1 else 0
        settings["slice_offset"] = slice_index * layout.slice_numel  # rounding at random differs by it
        if setting.optimizer.l2_sp > 0:
            # The dtype of training is exact: the masters began as weights of it.
            settings |= {"start": master.detach().to(setting.dtype, copy=True), "l2_sp": setting.optimizer.l2_sp}
        groups.append(_flat_group(layout, master, optimizer.state[master], settings.get("start")))
    return groups


def frozen_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that do not train."""
    return [parameter for parameter in module.parameters() if not parameter.requires_grad]


def norm_of(tensors: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements, float32, without a copy in another dtype.

    By parts, as one sum of squares in float32 over millions of elements is off by tenths of a per cent on a CPU.
    """
    parts = [part for tensor in tensors for part in tensor.reshape(-1).split(2**20)]
    return torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]).norm()


def _flat_group(layout: GroupLayout, master: Tensor, state: dict[str, Any], start: Tensor | None) -> FlatGroup:
    """Return a group with bitsandbytes' names for its moments; the two rows of AdEMAMix's get names of their own."""
    moments: dict[str, Tensor] = {}
    code_values: dict[str, Tensor] = {}
    for number in (1, 2):
        for name in (f"state{number}", f"absmax{number}"):
            if name not in state:
                continue
            tensor = state[name]
            rows = {name: tensor} if tensor.ndim == 1 else {f"{name}.fast": tensor[0], f"{name}.slow": tensor[1]}
            for row in rows.values():
                row.is_paged = is_paged(tensor)
            moments |= rows
            if tensor.dtype == torch.uint8:
                code_values |= dict.fromkeys(rows, state[f"qmap{number}"])
    return FlatGroup(layout, master, moments, code_values, start)
