"""torch and the GPUs: whether they are there, found by torch, and able to compute."""

import os
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tools.doctor.finding import Finding, fine, mend, note
from tools.doctor.software import INSTALL
from tools.doctor.subprocesses import answer_of, probed

DEVICES = Path("/dev")
GIB = 2**30
AMPERE = 8  # compute capability, the first with bfloat16 in hardware


@cache
def torch_facts() -> dict[str, Any]:
    """Return what the probe of torch found; it is asked once."""
    return probed("torch")


def check_torch() -> Iterator[Finding]:
    """Check that torch loads, and that it was built for the GPUs that are here."""
    facts, driver_cuda = torch_facts(), _driver_cuda()
    if "problem" in facts:
        yield mend("torch", f"does not load: {facts['problem']}", INSTALL)
        return
    built = f"CUDA {facts['cuda']}" if facts["cuda"] else "the CPU"
    found = f"{facts['version']}, built for {built}"
    if facts["gpus"]:
        yield fine("torch", found)
        yield from (_gpu(index, gpu) for index, gpu in enumerate(facts["gpus"]))
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "" and _has_nvidia():
        yield note("torch", f"{found}; CUDA_VISIBLE_DEVICES is empty, which hides the GPUs", _ask_for_gpus())
    elif _has_nvidia() and facts["cuda"] is None:
        newest = f" (for CUDA {driver_cuda} at most)" if driver_cuda else ""
        version = facts["version"].partition("+")[0]
        advice = f"install torch {version} built for CUDA{newest}: https://pytorch.org/get-started/locally"
        yield mend("torch", f"{found}, but this machine has NVIDIA GPUs", advice)
    elif _has_nvidia() and driver_cuda and int(driver_cuda.split(".")[0]) < int(facts["cuda"].split(".")[0]):
        advice = f"ask for a newer driver, or install a torch built for CUDA {driver_cuda} or older"
        yield mend("torch", f"{found}, but the driver knows CUDA {driver_cuda} at most", advice)
    elif _has_nvidia():
        reason = facts["warning"] or "torch does not say why"
        yield mend("torch", f"{found}, but finds no GPU: {reason}", "look at `nvidia-smi`; ask who runs this machine")
    elif "SLURM_JOB_ID" in os.environ:
        yield note("torch", f"{found}; this job has no GPU", _ask_for_gpus())
    else:
        yield fine("torch", f"{found}; no GPU here, which only training and encoding at size need")


def _gpu(index: int, facts: dict[str, Any]) -> Finding:
    name, (major, minor) = f"GPU {index}", facts["capability"]
    found = f"{facts['name']}, compute capability {major}.{minor}"
    if "total_bytes" in facts:
        found += f", {facts['free_bytes'] / GIB:.1f} of {facts['total_bytes'] / GIB:.1f} GiB free"
    if facts["problem"]:
        advice = "another process may hold it, or this torch was not built for it: look at `nvidia-smi`"
        return mend(name, f"{found}; it does not compute: {facts['problem']}", advice)
    if major < AMPERE:
        return note(name, f"{found}; no bfloat16 in hardware", "precision=fp32 may be faster than bf16, in more memory")
    if facts["free_bytes"] < 0.9 * facts["total_bytes"]:
        return note(name, f"{found}; another process uses it", "see whose it is with `nvidia-smi`")
    return fine(name, f"{found}, bfloat16")


def _ask_for_gpus() -> str:
    if "SLURM_JOB_ID" in os.environ:
        return "for training ask for one, such as --gpus-per-node=1; prepare needs none"
    return "unset CUDA_VISIBLE_DEVICES"


def _has_nvidia() -> bool:
    return (DEVICES / "nvidia0").exists() or answer_of(["nvidia-smi", "-L"]).stdout.startswith("GPU ")


def _driver_cuda() -> str | None:
    """Return the newest CUDA that the driver knows, such as 12.4; None where nothing tells it."""
    if not shutil.which("nvidia-smi"):
        return None
    match = re.search(r"CUDA Version: *(\d+\.\d+)", answer_of(["nvidia-smi"]).stdout)
    return match.group(1) if match else None


def check_deepspeed() -> Iterator[Finding]:
    """Check that DeepSpeed loads, and say how long that takes."""
    facts = probed("deepspeed")
    if "problem" in facts:
        yield mend("DeepSpeed", f"does not load: {facts['problem']}", INSTALL)
        return
    found = f"{facts['version']}; a rank loads it and torch in {facts['seconds']:.0f} s; nothing of it is compiled"
    if facts["seconds"] > 60:
        yield note("DeepSpeed", found, "this environment lies on a slow disk: every rank waits so long at its start")
    else:
        yield fine("DeepSpeed", found)


def check_bitsandbytes() -> Iterator[Finding]:
    """Take a step of 8-bit AdamW on the CPU and on a GPU."""
    facts = probed("bitsandbytes")
    if "problem" in facts:
        yield mend("bitsandbytes", f"does not load: {facts['problem']}", INSTALL)
        return
    for device, problem in facts["steps"].items():
        where = "CPU" if device == "cpu" else "GPU"
        if problem is None:
            yield fine("bitsandbytes", f"{facts['version']}: an 8-bit AdamW step on the {where} is right")
        elif device == "cpu" and "cuda" in facts["steps"]:
            yield note("bitsandbytes", f"{facts['version']} on the CPU: {problem}", "zero.offload alone needs it there")
        else:
            advice = f"train with optimizer.name=adamw, in 32 bits, or {INSTALL}"
            yield mend("bitsandbytes", f"{facts['version']} on the {where}: {problem}", advice)
