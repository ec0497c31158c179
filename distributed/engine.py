"""The ZeRO engine: DeepSpeed's stages 1 and 2 with a client 8-bit optimizer over aligned partitions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed.config import OptimizerConfig, Precision, ZeroConfig
from distributed.errors import EngineError
from distributed.optimizer import QUANTISATION_BLOCK, build_optimizer, parameter_groups
from distributed.rank import Rank


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: the gradient's norm before clipping, and whether it was skipped as not finite."""

    grad_norm: float
    is_skipped: bool


@dataclass(frozen=True)
class Member:
    """One parameter's place in its group: `offset` and `numel` in elements of the flat group."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class FlatGroup:
    """One optimizer group, flattened by ZeRO and cut into one slice a rank.

    numel: elements of its parameters; padded_numel: the same with the zeros at the end, a multiple of
    256 x ranks; optim_bits: 8 or 32; master: this rank's slice, float32 [padded_numel / ranks].
    """

    name: str
    members: tuple[Member, ...]
    numel: int
    padded_numel: int
    optim_bits: int
    master: Tensor


class PaddedModule(nn.Module):
    """A model with one more parameter a group: the zeros that make its slices whole quantisation blocks.

    DeepSpeed pads a group to 2 elements a rank, so that blocks would begin elsewhere at another world size.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.padding = nn.ParameterList()

    def pad(self, group: dict[str, Any], world_size: int) -> None:
        """Append zeros to `group` up to a multiple of 256 elements a rank."""
        numel = sum(p.numel() for p in group["params"])
        missing = -numel % (QUANTISATION_BLOCK * world_size)
        if missing:
            like = group["params"][0]
            self.padding.append(nn.Parameter(torch.zeros(missing, dtype=like.dtype, device=like.device)))
            group["params"].append(self.padding[-1])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        return self.inner(*args, **kwargs)


def training_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of weights and activations: `auto` is bfloat16 on CUDA and float32 elsewhere."""
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def training_device(rank: Rank) -> torch.device:
    """Return this rank's device: its own GPU where there is one, else the CPU.

    Raises: EngineError if a node has fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if rank.local_index >= torch.cuda.device_count():
        raise EngineError(
            f"rank {rank.index} is number {rank.local_index} of its node, which shows {torch.cuda.device_count()} GPUs:"
            " start as many ranks a node as it has GPUs"
        )
    torch.cuda.set_device(rank.local_index)
    return torch.device("cuda", rank.local_index)


class Engine:
    """Trains one module: for each micro batch, call `network`, `accumulate` its loss and `finish_micro_batch`.

    Its state lies in `groups` (master weights) and `moments`.
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

        micro_size: samples a rank and micro batch; accumulation_steps: micro batches an optimizer step.
        """
        import deepspeed

        self.rank = rank
        self.device = training_device(rank)
        self.dtype = training_dtype(precision)
        self.module = module.to(self.device)
        assert all(p.dtype == self.dtype for p in module.parameters()), "load the module in training_dtype"
        padded = PaddedModule(self.module)
        groups = parameter_groups(self.module, optimizer)
        layouts = [_members(group) for group in groups]
        for group in groups:
            padded.pad(group, rank.world_size)
        names = [(group["name"], group["optim_bits"]) for group in groups]
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=padded,
            optimizer=build_optimizer(groups, optimizer),
            config=deepspeed_config(optimizer, zero, self.dtype, micro_size, accumulation_steps),
        )
        self._optimizer = self._zero.optimizer
        self.groups = [
            FlatGroup(
                name=name,
                members=members,
                numel=sum(member.numel for member in members),
                padded_numel=master.numel() * rank.world_size,
                optim_bits=bits,
                master=master,
            )
            for (name, bits), members, master in zip(
                names, layouts, self._zero.single_partition_of_fp32_groups, strict=True
            )
        ]
        assert all(group.master.numel() % QUANTISATION_BLOCK == 0 for group in self.groups)
        self._begin_moments()

    @property
    def network(self) -> nn.Module:
        """The module as it must be called to be trained; `module` is the bare one."""
        network: nn.Module = self._engine
        return network

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of one micro batch's mean loss."""
        self._engine.backward(loss)

    def finish_micro_batch(self, learning_rate: float) -> StepResult | None:
        """Count one micro batch; return the step's result where it was the last of its global batch."""
        is_boundary = self._engine.is_gradient_accumulation_boundary()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if not is_boundary:
            return None
        is_skipped = bool(self._zero.overflow)
        return StepResult(grad_norm=float(self._engine.get_global_grad_norm()), is_skipped=is_skipped)

    def moments(self, group: int) -> dict[str, Tensor]:
        """Return this rank's slices of group `group`'s optimizer state.

        state1, state2: uint8 codes or float32, one an element; absmax1, absmax2: float32, one a block of 256.
        """
        state = self._optimizer.state[self.groups[group].master]
        return {name: state[name] for name in ("state1", "state2", "absmax1", "absmax2") if name in state}

    @property
    def num_steps(self) -> int:
        """Optimizer steps taken, which is what AdamW's bias correction counts. Skipped ones do not count."""
        return int(self._optimizer.state[self.groups[0].master]["step"])

    def restore(self, num_steps: int) -> None:
        """Say that `groups` and `moments` now hold the state after `num_steps` steps. Collective."""
        for group in self.groups:
            self._optimizer.state[group.master]["step"] = num_steps
        self._zero.update_lp_params()

    def gather(self, slices: Sequence[Tensor]) -> dict[str, Tensor] | None:
        """Return the parameters that `slices` (float32, one a group) make up, by name, on the first rank's CPU.

        Other ranks get None. Collective; one group at a time is on the device.
        """
        weights: dict[str, Tensor] = {}
        for group, slice_ in zip(self.groups, slices, strict=True):
            parts = [torch.empty_like(slice_) for _ in range(self.rank.world_size)] if self.rank.is_first else None
            dist.gather(slice_.detach(), parts)
            if parts:
                flat = torch.cat([part.cpu() for part in parts])
                weights |= {m.name: flat[m.offset : m.offset + m.numel].view(m.shape) for m in group.members}
        return weights if self.rank.is_first else None

    @contextmanager
    def weights_from(self, slices: Sequence[Tensor]) -> Iterator[nn.Module]:
        """Lend the module with the weights of `slices` (float32, one a group) in place of the master's. Collective."""
        masters = [group.master.data for group in self.groups]
        self._send_weights(slices)
        yield self.module
        # Not in a `finally`: after an error on this rank alone, a collective would wait for the others for ever.
        self._send_weights(masters)

    def close(self) -> None:
        """Free everything. DeepSpeed's hooks keep its engine alive beyond its last reference."""
        self._engine.destroy()

    def _send_weights(self, slices: Sequence[Tensor]) -> None:
        """Take `slices` for the master weights and send them to the module on every rank."""
        for group, slice_ in zip(self.groups, slices, strict=True):
            group.master.data = slice_
        self._zero.update_lp_params()

    def _begin_moments(self) -> None:
        # bitsandbytes makes its state at the first step; made now, a checkpoint can be loaded into it.
        for index, (settings, group) in enumerate(zip(self._optimizer.param_groups, self.groups, strict=True)):
            self._optimizer.init_state(settings, group.master, index, 0)


def deepspeed_config(
    optimizer: OptimizerConfig, zero: ZeroConfig, dtype: torch.dtype, micro_size: int, accumulation_steps: int
) -> dict[str, Any]:
    """Return DeepSpeed's own dictionary. The optimizer is not in it: a client optimizer compiles nothing."""
    return {
        "train_micro_batch_size_per_gpu": micro_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": optimizer.clip_norm,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": zero.stage,
            "reduce_bucket_size": zero.reduce_bucket_elements,
            "allgather_bucket_size": zero.allgather_bucket_elements,
            # Overlap needs a second bucket of gradients; memory comes first here.
            "overlap_comm": False,
        },
    }


def _members(group: dict[str, Any]) -> tuple[Member, ...]:
    """Return the places of a group's parameters, and take their names out of it (DeepSpeed wants none)."""
    members, offset = [], 0
    for name, parameter in zip(group.pop("param_names"), group["params"], strict=True):
        members.append(Member(name, tuple(parameter.shape), offset))
        offset += parameter.numel()
    return tuple(members)
