"""bitsandbytes optimizers over flat slices: bits by group, steps in little room, bf16 weights rounded at random."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from distributed.config import OptimizerConfig
from distributed.layout import QUANTISATION_BLOCK
from distributed.paged_memory import LEAST_PAGED, zeros_of_kept
from distributed.uncompiled import AdamW, AdEMAMix, Lion

# The CPU kernels expand what they are given to float32 (about 20 bytes an element). A step over chunks of whole blocks
# gives the same bits with a transient of some 20 MB; smaller chunks are slower with several threads.
CPU_CHUNK_ELEMENTS = 2**20
# On a GPU weights without a float32 master are taken in chunks, which are expanded one at a time, and so are AdEMAMix's
# moments of slices that are no whole blocks.
GPU_CHUNK_ELEMENTS = 2**21
# What that takes an element of a chunk, measured: weights, gradients and noise in 32 bits, and passing results.
STOCHASTIC_CHUNK_BYTES = 19


class Blockwise:
    """What our optimizers add to bitsandbytes' own; mixed in before one of its classes.

    - A group's `optim_bits` is heeded. GlobalOptimManager's overrides go by parameter and are lost when ZeRO flattens
      the parameters; a key of the group survives. `min_8bit_size` is 0: it is compared with the slice's size, so that
      a group would be 8-bit on two ranks and 32-bit on four.
    - A step works chunk by chunk where that saves memory, with the same bits as a whole one.
    - AdEMAMix's kernel for GPUs takes the scales of the slow mean to begin where its codes do, at the elements / 256,
      rounded down; they begin at a whole block. It gets whole blocks alone: the last one is filled up with zeros.
    - bfloat16 weights are updated in float32, a chunk at a time, and rounded stochastically.
    - A group's `start`, if it has one, pulls: w -= lr * l2_sp * (w - start) after each step, before any rounding.
      Source: Li, Grandvalet & Davoine 2018 (arXiv:1802.01483), section 3, decoupled from the gradient as the decay of
      AdamW is (arXiv:1711.05101).
    """

    state: dict[Tensor, dict[str, Any]]
    is_paged: bool

    def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return zeros for a moment of `p`; paged, in the memory of a closed engine where there is some."""
        zeros = self._kept_zeros(p, p.shape, dtype)
        return super().get_state_buffer(p, dtype) if zeros is None else zeros  # type: ignore[misc]

    def _get_state_double_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the same for AdEMAMix's two means."""
        zeros = self._kept_zeros(p, (2, *p.shape), dtype)
        return super()._get_state_double_buffer(p, dtype) if zeros is None else zeros  # type: ignore[misc]

    def _kept_zeros(self, p: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        if not self.is_paged or p.numel() < LEAST_PAGED:
            return None
        return zeros_of_kept(shape, dtype, p.device)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Return bitsandbytes' settings of one parameter, with the bits that its group asks for."""
        config: dict[str, Any] = super().get_config(gindex, pindex, group)  # type: ignore[misc]
        config["optim_bits"] = group["optim_bits"]
        return config

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Update `p` (flat) and its moments by one step."""
        is_stochastic = p.dtype == torch.bfloat16
        start, pull = group.get("start"), group["lr"] * group.get("l2_sp", 0)
        state = self.state[p]
        if p.device.type != "cpu" and not is_stochastic and not _splits_a_block(state, p.numel()):
            super().update_step(group, p, gindex, pindex)  # type: ignore[misc]
            if start is not None:
                for elements, _ in _chunks(p.numel(), GPU_CHUNK_ELEMENTS):
                    p.data[elements].lerp_(start[elements].float(), pull)
            return
        assert p.grad is not None
        noise = _rounding_noise(p.device, state["step"], group) if is_stochastic else None
        size = CPU_CHUNK_ELEMENTS if p.device.type == "cpu" else GPU_CHUNK_ELEMENTS
        for elements, blocks in _chunks(p.numel(), size):
            weights = p.data[elements]
            numel = weights.numel()
            num_missing = -numel % QUANTISATION_BLOCK if _splits_a_block(state, numel) else 0
            chunk = _filled_up(weights.float() if is_stochastic else weights, num_missing)
            chunk.grad = _filled_up(p.grad[elements].to(chunk.dtype), num_missing)
            # bitsandbytes' own step, on views of this chunk's part of the moments.
            views = {name: _view(name, value, elements, blocks) for name, value in state.items()}
            self.state[chunk] = {name: _alone(name, views, num_missing, chunk.device) for name in views}
            super().update_step(group, chunk, gindex, pindex)  # type: ignore[misc]
            stepped = self.state.pop(chunk)
            for name, view in views.items():
                if stepped[name] is not view and isinstance(view, Tensor):
                    view.copy_(stepped[name][..., : view.shape[-1]])
            stepped_weights = chunk[:numel]
            if start is not None:
                stepped_weights.lerp_(start[elements].float(), pull)
            if noise is not None:
                weights.copy_(round_stochastically_(stepped_weights, noise))
            elif num_missing:
                weights.copy_(stepped_weights)
        state["step"] += 1


class BlockwiseAdamW(Blockwise, AdamW):
    """AdamW: state1 is the mean of the gradients, state2 that of their squares."""


class BlockwiseLion(Blockwise, Lion):
    """Lion (arXiv:2302.06675): state1 is the only moment; the update is its sign, so the learning rate is smaller."""


class BlockwiseAdEMAMix(Blockwise, AdEMAMix):
    """AdEMAMix (arXiv:2409.03137): state1 holds a fast and a slow mean of the gradients, [2, elements]."""


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the client optimizer that the engine gets, over `groups` of `parameter_groups`."""
    common = {"lr": config.lr, "weight_decay": config.weight_decay, "min_8bit_size": 0, "is_paged": config.paged}
    betas = config.resolved_betas
    optimizer: torch.optim.Optimizer
    match config.name:
        case "adamw8bit" | "adamw":
            optimizer = BlockwiseAdamW(groups, betas=betas, eps=config.resolved_eps, **common)
        case "lion8bit":
            optimizer = BlockwiseLion(groups, betas=betas, **common)
        case "ademamix8bit":
            optimizer = BlockwiseAdEMAMix(groups, betas=betas, eps=config.resolved_eps, **common)
    return optimizer


@torch.no_grad()
def round_stochastically_(values: Tensor, noise: torch.Generator) -> Tensor:
    """Round float32 `values` in place, up or down to a bfloat16 with the probabilities that keep their mean.

    bfloat16 is the upper half of a float32: adding a random lower half and cutting it off rounds away from zero as
    often as the value lies near that side. A change far below a bfloat16's spacing thus counts on average.
    Source: Zamirai et al. 2020 (arXiv:2010.06192), section 3. Infinity and NaN stay what they are.
    """
    bits = torch.randint(0, 2**16, values.shape, dtype=torch.int32, device=values.device, generator=noise)
    rounded = bits.add_(values.view(torch.int32)).bitwise_and_(-(2**16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values, out=values)


def _rounding_noise(device: torch.device, step: int, group: dict[str, Any]) -> torch.Generator:
    """Return a generator that depends on step, group and the slice's place in it alone.

    A resumed run rounds as the first one did, ranks that hold the same weights round alike, and slices of one group
    independently of each other.
    """
    place = f"{step} {group['index']} {group.get('slice_offset', 0)}".encode()
    return torch.Generator(device).manual_seed(int.from_bytes(blake2b(place, digest_size=8).digest()))


def _chunks(numel: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield the elements and the blocks of chunks of at most `size` elements, a multiple of the block."""
    for start in range(0, numel, size):
        stop = min(start + size, numel)
        yield slice(start, stop), slice(start // QUANTISATION_BLOCK, -(-stop // QUANTISATION_BLOCK))


def _view(name: str, value: Any, elements: slice, blocks: slice) -> Any:
    """Return the part of one entry of the optimizer's state that belongs to a chunk."""
    if name.startswith("state"):
        return value[..., elements]
    return value[..., blocks] if name.startswith("absmax") else value


def _splits_a_block(state: dict[str, Any], numel: int) -> bool:
    """Return whether AdEMAMix's scales, in two rows, are of elements that are no whole blocks."""
    return "absmax1" in state and state["absmax1"].ndim == 2 and numel % QUANTISATION_BLOCK > 0


def _filled_up(tensor: Tensor, num_missing: int, value: int = 0) -> Tensor:
    return pad(tensor, (0, num_missing), value=value) if num_missing else tensor


def _alone(name: str, views: dict[str, Any], num_missing: int, device: torch.device) -> Any:
    """Return one entry of a chunk's state as the kernel wants it: where the chunk is, contiguous and filled up.

    The two rows of AdEMAMix's state1 are not next to each other in a chunk; CUDA's kernels take them to be. Paged
    moments are the host's for torch.
    """
    value = views[name]
    if not isinstance(value, Tensor):
        return value
    value = value.to(device)
    if num_missing and name.startswith("state"):
        # The code of 0, so that what is missing changes no scale.
        value = _filled_up(value, num_missing, int(views[name.replace("state", "qmap")].abs().argmin()))
    return value.contiguous()
