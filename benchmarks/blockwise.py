"""Measure an 8-bit AdamW step on the CPU: bitsandbytes' own, on a whole slice, against ours in chunks.

`python -m benchmarks.engine` prints it, at 1 and at 2 threads. Of the rounds the fastest counts: threads wait for each
other at the end of every operator, so that other work on one core delays both, and most rounds on a shared machine.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit
from torch import nn

from benchmarks.tensor_bytes import allocated_bytes
from distributed.blockwise import BlockwiseAdamW

NUM_ELEMENTS = 10_000_000


def compare_steps(num_rounds: int) -> list[dict[str, Any]]:
    """Return the rows of bitsandbytes' 8-bit step and ours on one flat parameter on the CPU.

    Raises: RuntimeError if the weights are not equal to the bit.
    """
    generator = torch.Generator().manual_seed(0)
    weights, gradient = (torch.randn(NUM_ELEMENTS, generator=generator) for _ in range(2))
    steps: dict[str, Callable[[], object]] = {}
    parameters = {}
    for name, kind in (("bitsandbytes", AdamW8bit), ("chunked", BlockwiseAdamW)):
        parameter = parameters[name] = nn.Parameter(weights.clone())
        parameter.grad = gradient.clone()
        group = {"params": [parameter], "optim_bits": 8, "index": 0}
        steps[name] = kind([group] if name == "chunked" else [parameter], lr=1e-4).step
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(num_rounds + 1):
        for name, step in steps.items():
            start_s = time.perf_counter()
            step()
            times[name].append((time.perf_counter() - start_s) * 1e3)
    rows = []
    for name, step in steps.items():
        row = {
            "threads": torch.get_num_threads(),
            "contender": name,
            "wall_ms": round(min(times[name]), 1),
            "wall_ratio": round(min(times[name]) / min(times["bitsandbytes"]), 3),
            "extra_bytes": allocated_bytes(step, torch.device("cpu")),
        }
        rows.append(row)
    if not torch.equal(parameters["bitsandbytes"], parameters["chunked"]):
        raise RuntimeError("the chunked step gives other weights")
    return rows
