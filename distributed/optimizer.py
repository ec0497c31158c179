"""8-bit AdamW over ZeRO's flat partitions: which parameters get 8 bits, and a CPU step that needs little room."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from bitsandbytes import functional as bnb_functional
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn

from distributed.config import OptimizerConfig

# bitsandbytes quantises a moment in blocks of this many elements, each with its own scale (absmax).
QUANTISATION_BLOCK = 256
# The CPU kernel expands a whole tensor to float32 (about 20 bytes an element). A step over slices of whole blocks
# gives the same bits with a transient of some 70 MB; smaller slices are slower with several threads.
CPU_STEP_ELEMENTS = 2**20


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (counted from 1) of `total_steps`."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    remaining = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.lr_final_fraction + (1 - config.lr_final_fraction) * remaining)


class BlockwiseAdamW(AdamW8bit):
    """bitsandbytes AdamW whose groups choose their `optim_bits`, and whose CPU step works slice by slice.

    GlobalOptimManager's overrides go by parameter and are lost when ZeRO flattens the parameters; a key of the
    group survives. bitsandbytes' `min_8bit_size` is set to 0: it is compared with the partition's size, so a group
    would be 8-bit on two ranks and 32-bit on four.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> None:
        super().__init__(
            groups,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            min_8bit_size=0,
        )

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Return bitsandbytes' settings of one parameter, with the bits that its group asks for."""
        config: dict[str, Any] = super().get_config(gindex, pindex, group)
        config["optim_bits"] = group["optim_bits"]
        return config

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Update `p` and its moments by one step."""
        state = self.state[p]
        if p.device.type != "cpu" or state["state1"].dtype != torch.uint8:
            super().update_step(group, p, gindex, pindex)
            return
        config = self.get_config(gindex, pindex, group)
        state["step"] += 1
        assert p.grad is not None
        weights, gradients = p.data.view(-1), p.grad.view(-1)
        for start in range(0, weights.numel(), CPU_STEP_ELEMENTS):
            elements = slice(start, start + CPU_STEP_ELEMENTS)
            blocks = slice(start // QUANTISATION_BLOCK, (start + CPU_STEP_ELEMENTS) // QUANTISATION_BLOCK)
            bnb_functional.optimizer_update_8bit_blockwise(
                self.optimizer_name,
                gradients[elements],
                weights[elements],
                state["state1"][elements],
                state["state2"][elements],
                *config["betas"],
                0.0,  # beta3, of AdEMAMix
                0.0,  # alpha, of AdEMAMix
                config["eps"],
                state["step"],
                config["lr"],
                state["qmap1"],
                state["qmap2"],
                state["absmax1"][blocks],
                state["absmax2"][blocks],
                config["weight_decay"],
            )


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> BlockwiseAdamW:
    """Return the client optimizer that the engine gets, over `groups` of `parameter_groups`."""
    return BlockwiseAdamW(groups, config)


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups of `module`'s trainable parameters, with the parameters' names.

    Matrices and convolutions decay and may have 8-bit moments. Norms, biases and embeddings do not decay and keep
    32 bits: they are few, and their second moments differ by orders of magnitude within one block.
    Source of the split: Dettmers et al. 2022 (arXiv:2110.02861), section 2.3 (stable embeddings in 32 bits).
    """
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    others = [(name, p) for name, p in trainable if p.ndim < 2 or id(p) in embeddings]
    matrix_bits = 8 if config.name == "adamw8bit" else 32
    return [
        *_bounded_groups("matrices", matrices, config.weight_decay, matrix_bits),
        *_bounded_groups("norms-and-biases", others, 0.0, 32),
    ]


# ZeRO-1/2 makes a float32 copy of one group's gradients at a time: bounded groups keep that copy small.
_GROUP_ELEMENTS = 2**26


def _bounded_groups(
    name: str, named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, optim_bits: int
) -> Iterator[dict[str, Any]]:
    """Yield groups of at most `_GROUP_ELEMENTS` elements (or of one parameter that alone has more), in order."""
    members: list[tuple[str, nn.Parameter]] = []
    for pair in named:
        if members and sum(p.numel() for _, p in members) + pair[1].numel() > _GROUP_ELEMENTS:
            yield _group(name, members, weight_decay, optim_bits)
            members = []
        members.append(pair)
    if members:
        yield _group(name, members, weight_decay, optim_bits)


def _group(name: str, members: list[tuple[str, nn.Parameter]], weight_decay: float, optim_bits: int) -> dict[str, Any]:
    return {
        "name": name,
        "params": [p for _, p in members],
        "param_names": [n for n, _ in members],
        "weight_decay": weight_decay,
        "optim_bits": optim_bits,
    }
