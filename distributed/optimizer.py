"""Which parameters get 8-bit moments and decay, in which groups, and at what learning rate."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from distributed.config import OptimizerConfig, ZeroConfig

# ZeRO makes a copy of one group's gradients at a time, in float32: bounded groups keep that copy small, at most 64 MB,
# and 4 % of a network in bf16 (a twenty-fourth of its elements). A group of under 2 million elements saves nothing.
GROUP_ELEMENTS, GROUP_SHARE = 2**24, 24
# Buckets of gradients take 2 bytes an element of theirs whatever the number of ranks: at most 2.5 % of the weights.
BUCKET_SHARE = 40
LEAST_ELEMENTS = 2**21


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (counted from 1) of `total_steps`."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    remaining = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.lr_final_fraction + (1 - config.lr_final_fraction) * remaining)


def bucket_elements(module: nn.Module, zero: ZeroConfig) -> int:
    """Return the elements of a bucket of `module`'s gradients: as configured, or fewer where few parameters train."""
    return _bounded(zero.reduce_bucket_elements, BUCKET_SHARE, [p for p in module.parameters() if p.requires_grad])


def parameter_groups(module: nn.Module, config: OptimizerConfig, divisor: int = 1) -> list[dict[str, Any]]:
    """Return the optimizer's groups of `module`'s trainable parameters, with the parameters' names.

    Matrices and convolutions decay and may have 8-bit moments. Norms, biases and embeddings do not decay and keep
    32 bits: they are few, and their second moments differ by orders of magnitude within one block.
    divisor: matrices whose size is no multiple of it stand in groups of their own.
    Source of the split: Dettmers et al. 2022 (arXiv:2110.02861), section 2.3 (stable embeddings in 32 bits).
    """
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    others = [(name, p) for name, p in trainable if p.ndim < 2 or id(p) in embeddings]
    bits = config.matrix_bits
    limit = _bounded(GROUP_ELEMENTS, GROUP_SHARE, [p for _, p in trainable])
    groups = [
        *_bounded_groups("matrices", [(n, p) for n, p in matrices if p.numel() % divisor == 0], bits, limit),
        *_bounded_groups("ragged-matrices", [(n, p) for n, p in matrices if p.numel() % divisor], bits, limit),
        *_bounded_groups("norms-and-biases", others, 32, limit),
    ]
    for index, group in enumerate(groups):
        group["index"] = index
        group["weight_decay"] = 0.0 if group["name"] == "norms-and-biases" else config.weight_decay
    return groups


def _bounded(limit: int, share: int, trainable: list[nn.Parameter]) -> int:
    """Return how many elements to take at a time: `limit`, but no more than the `share`-th part of what trains."""
    return min(limit, max(LEAST_ELEMENTS, sum(p.numel() for p in trainable) // share))


def _bounded_groups(
    name: str, named: Iterable[tuple[str, nn.Parameter]], optim_bits: int, limit: int
) -> Iterator[dict[str, Any]]:
    """Yield groups of at most `limit` elements (or of one parameter that alone has more), in order."""
    members: list[tuple[str, nn.Parameter]] = []
    for pair in named:
        if members and sum(p.numel() for _, p in members) + pair[1].numel() > limit:
            yield _group(name, members, optim_bits)
            members = []
        members.append(pair)
    if members:
        yield _group(name, members, optim_bits)


def _group(name: str, members: list[tuple[str, nn.Parameter]], optim_bits: int) -> dict[str, Any]:
    return {
        "name": name,
        "params": [p for _, p in members],
        "param_names": [n for n, _ in members],
        "optim_bits": optim_bits,
    }
