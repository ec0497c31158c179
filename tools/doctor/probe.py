"""Loads one library, or measures one disk, in a process of its own: `python -m tools.doctor.probe NAME [ARGUMENT]`.

It prints the facts as one line of JSON; what went wrong is the last line of stderr.
"""

import importlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from launch.quiet import quiet_libraries


def torch_facts() -> dict[str, Any]:
    """Return what torch was built for, and the GPUs that it can compute on."""
    import torch
    import torch.distributed

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [_gpu_facts(index) for index in range(torch.cuda.device_count())] if is_available else [],
        "warning": " ".join(str(warned[0].message).split()) if warned else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl and is_available else None,
        "has_nccl": has_nccl,
        "has_gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
    }


def _gpu_facts(index: int) -> dict[str, Any]:
    import torch

    about = torch.cuda.get_device_properties(index)
    facts: dict[str, Any] = {"name": about.name, "capability": [about.major, about.minor], "problem": None}
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        facts |= {"free_bytes": free_bytes, "total_bytes": total_bytes}
        ones = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16)
        if (ones @ ones)[0, 0].item() != 64:
            facts["problem"] = "a product of two matrices is wrong"
    except RuntimeError as error:
        facts["problem"] = str(error).splitlines()[0]
    return facts


def deepspeed_facts() -> dict[str, Any]:
    """Return DeepSpeed's version, and the seconds in which a rank has loaded it, torch and the engine."""
    started = time.monotonic()
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as a rank does
    deepspeed = importlib.import_module("deepspeed")
    importlib.import_module("distributed.engine")
    return {"version": deepspeed.__version__, "seconds": time.monotonic() - started}


def bitsandbytes_facts() -> dict[str, Any]:
    """Return bitsandbytes' version and, for the CPU and each kind of GPU here, what is wrong with an 8-bit step."""
    import torch

    bitsandbytes = importlib.import_module("bitsandbytes")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {"version": bitsandbytes.__version__, "steps": {device: _problem_of_step(device) for device in devices}}


def _problem_of_step(device: str) -> str | None:
    """Return what is wrong with a step of the project's own 8-bit AdamW; None if nothing is."""
    import torch

    from distributed.blockwise import build_optimizer
    from distributed.config import OptimizerConfig
    from distributed.optimizer import parameter_groups

    try:
        layer = torch.nn.Linear(256, 256).to(device)
        before = layer.weight.detach().clone()
        config = OptimizerConfig(name="adamw8bit", lr=0.01, weight_decay=0)
        optimizer = build_optimizer(parameter_groups(layer, config), config)
        layer.weight.grad = torch.full_like(before, 0.5)
        optimizer.step()
        state = optimizer.state[layer.weight]
        if state["state1"].dtype != torch.uint8:
            return f"moments are {state['state1'].dtype}, not 8-bit"
        # Adam's first step is the learning rate, whatever the gradient's size. 8 bits: 2 % are plenty.
        moved = (before - layer.weight.detach()).mean().item()
        return None if abs(moved - 0.01) < 2e-4 else f"weights moved by {moved:g}, not by the learning rate of 0.01"
    except Exception as error:  # a missing native library shows itself in many ways
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


def disk_facts(folder: str) -> dict[str, Any]:
    """Return how fast a folder can be written, read and locked, and leave nothing in it."""
    from tools.doctor.disk_speed import measure

    return measure(folder)


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "torch": torch_facts,
    "deepspeed": deepspeed_facts,
    "bitsandbytes": bitsandbytes_facts,
    "disk": disk_facts,
}


def _stop(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # through every `finally`


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    quiet_libraries()
    # torch makes this folder when DeepSpeed is imported, in TMPDIR; one that is there stays as it is.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(__file__).parent)
    try:
        found = PROBES[sys.argv[1]](*sys.argv[2:])
    except Exception as failure:  # the caller shows the last line of stderr
        sys.exit(" ".join(f"{type(failure).__name__}: {failure}".split()))
    print(json.dumps(found), flush=True)
