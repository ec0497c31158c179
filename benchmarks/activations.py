"""Measure a UNet's forward and backward: seconds and peak activation bytes, by setting, side by side on one input.

`python -m benchmarks.activations` prints tables and one JSON line. On CUDA it takes the UNet of Stable Diffusion 1.5
(random weights, bf16, 64x64 latents, micro batch 4); on a CPU one of 70.5 million parameters (fp32, 32x32, micro batch
2), and that of the built-in model to compile (micro batch 4), as the other one takes many minutes. Columns:

    s/step       the median of one forward and backward, after one that is not counted (it compiles); on a CPU in CPU
                 time of one thread, so that other work on the same cores does not count
    ratio        that, to the default's
    peak MB      the most that the allocator had given out at once, without parameters and their whole gradients
    predicted    what launch.activations says without allocating; it knows no compiler
    gradient     norm of the difference of the whole gradient to the default's, relative: rounding, or a fault
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.report import Beside, Limit, ReportTable, report
from benchmarks.stable_diffusion_config import SMALLER_UNET, UNET, write_stable_diffusion_config
from benchmarks.tensor_bytes import allocated_bytes
from launch.activations import activation_bytes, gradients_dropped
from models.base import ModelConfig, latent_shape, noise_schedule, open_base, text_shape
from models.objective import ObjectiveConfig, denoising_loss
from models.stable_diffusion import apply_settings, empty_unet

SEED = 0
NUM_STEPS = 5
# What a setting's gradient may differ from the default's, relative: it is rounding, or a fault.
GRADIENT_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
DEFAULT = "default"
SETTINGS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "checkpointing": {"gradient_checkpointing": True},
    "eager attention": {"attention": "eager"},
    "channels-last": {"channels_last": True},
    "compile": {"compile": True},
    "compile, checkpointing": {"compile": True, "gradient_checkpointing": True},
}


@dataclass(frozen=True)
class Measured:
    """One row of the table. gradient_error: relative to the default's gradient."""

    step_s: float
    peak_bytes: int
    predicted_bytes: int
    gradient_error: float


@dataclass(frozen=True)
class Case:
    """One table: a base model, and the settings to measure its UNet with. name: of the table."""

    name: str
    base: str
    settings: Sequence[str]
    dtype: torch.dtype
    micro_size: int


def main() -> int:
    """Print the tables and the JSON line; return 1 if a gradient is not the default's."""
    parser = argparse.ArgumentParser(description="Seconds and activation bytes of a UNet's forward and backward.")
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled, which takes minutes")
    with_compile = not parser.parse_args().no_compile
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {"hardware": hardware(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        found = [(case, measure(case, device)) for case in cases(device, Path(folder), with_compile=with_compile)]
    tables = [table_of(case, rows, facts) for case, rows in found]
    beside = [
        Beside(
            f"activations, {name}",
            f"predicted {row.predicted_bytes / 1e6:.1f} MB",
            f"measured {row.peak_bytes / 1e6:.1f} MB",
            row.predicted_bytes / row.peak_bytes,
            "prediction",
        )
        for name, row in found[0][1].items()
        if "compile" not in name
    ]
    rows = {
        case.name: {"dtype": dtype_name(case), "micro_size": case.micro_size}
        | {name: vars(row) for name, row in of_case.items()}
        for case, of_case in found
    }
    limits = [
        Limit(f"gradient, {case.name}, {name}", row.gradient_error, GRADIENT_LIMITS[case.dtype])
        for case, of_case in found
        for name, row in of_case.items()
        if name != DEFAULT
    ]
    return report("activations", tables, beside, {"rows": rows} | facts, limits)


def cases(device: torch.device, folder: Path, *, with_compile: bool) -> list[Case]:
    """Return the tables to make. folder: for the configuration of a base model."""
    settings = [name for name in SETTINGS if "compile" not in name]
    compiled = [name for name in SETTINGS if "compile" in name] if with_compile else []
    if device.type == "cuda":
        base = write_stable_diffusion_config(folder, UNET)
        return [Case("Stable Diffusion 1.5", str(base), [*settings, *compiled], torch.bfloat16, 4)]
    base = write_stable_diffusion_config(folder, SMALLER_UNET)
    found = [Case("70.5M parameters", str(base), settings, torch.float32, 2)]
    if compiled:
        found.append(Case("built-in model", "tiny", [DEFAULT, compiled[0]], torch.float32, 4))
    return found


def table_of(case: Case, rows: dict[str, Measured], facts: Mapping[str, object]) -> ReportTable:
    """Return one case's table."""
    title = {"UNet": case.name, **facts, "dtype": dtype_name(case), "micro_size": case.micro_size}
    cells = []
    for name, row in rows.items():
        ratio = row.step_s / rows[DEFAULT].step_s
        sizes = (f"{row.peak_bytes / 1e6:.1f}", f"{row.predicted_bytes / 1e6:.1f}")
        cells.append([name, f"{row.step_s:.3f}", f"{ratio:.2f}", *sizes, f"{row.gradient_error:.1e}"])
    columns = ("setting", "s/step", "ratio", "peak MB", "predicted", "gradient")
    return ReportTable(", ".join(f"{key} {value}" for key, value in title.items()), columns, cells)


def dtype_name(case: Case) -> str:
    """Return the name of a case's dtype, without torch's."""
    return str(case.dtype).removeprefix("torch.")


def measure(case: Case, device: torch.device) -> dict[str, Measured]:
    """Return the row of each setting. Their steps are timed in turns, so that other work meets all alike."""
    config, names = ModelConfig(base=case.base), case.settings
    torch.manual_seed(SEED)
    with torch.device(device):
        first = UNet2DConditionModel.from_config(open_base(config).part_config("unet"))
    weights = {name: tensor.to(case.dtype) for name, tensor in first.state_dict().items()}
    del first
    configs = {name: config.model_copy(update=SETTINGS[name]) for name in names}
    unets = {name: make_unet(configs[name], weights) for name in names}

    def step(name: str) -> None:
        forward_backward(unets[name], config, case.micro_size)

    errors: dict[str, float] = {}
    reference: dict[str, Tensor] = {}
    for name, unet in unets.items():
        step(name)
        gradient = {parameter: p.grad for parameter, p in unet.named_parameters() if p.grad is not None}
        reference = reference or gradient
        errors[name] = relative_difference(gradient, reference)
        unet.zero_grad()
    clock_s = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(NUM_STEPS):
        for name, unet in unets.items():
            start_s = clock_s()
            step(name)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock_s() - start_s)
            unet.zero_grad()
    rows = {}
    for name, unet in unets.items():
        with gradients_dropped(unet):
            peak_bytes = allocated_bytes(lambda name=name: step(name), device)  # type: ignore[misc]
        predicted_bytes = activation_bytes(configs[name], micro_size=case.micro_size, dtype=case.dtype)
        rows[name] = Measured(statistics.median(seconds[name]), peak_bytes, predicted_bytes, errors[name])
    return rows


def make_unet(config: ModelConfig, weights: dict[str, Tensor]) -> nn.Module:
    """Return a UNet on `weights`, which all share, with the settings of `config`."""
    unet = empty_unet(config).train()
    unet.load_state_dict(weights, assign=True)
    apply_settings(unet, config)
    return unet


def forward_backward(unet: nn.Module, config: ModelConfig, micro_size: int) -> None:
    """Add the gradient of one micro batch, always the same, drawn on the CPU."""
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    schedule = noise_schedule(config)
    latents_BCHW = torch.randn(micro_size, *latent_shape(config), generator=generator).to(device)
    noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator).to(device)
    timesteps_B = torch.randint(schedule.num_timesteps, (micro_size,), generator=generator).to(device)
    text_BLD = torch.randn(micro_size, *text_shape(config), generator=generator).to(device)
    loss_B = denoising_loss(unet, schedule, ObjectiveConfig(), latents_BCHW, noise_BCHW, timesteps_B, text_BLD)
    loss_B.mean().backward()


def relative_difference(gradient: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Return the norm of the difference of two whole gradients over that of `reference`."""
    squares = [(gradient[name].float() - value.float()).square().sum() for name, value in reference.items()]
    total = torch.stack([value.float().square().sum() for value in reference.values()]).sum()
    return float((torch.stack(squares).sum() / total).sqrt())


def hardware(device: torch.device) -> str:
    """Return the name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    sys.exit(main())
