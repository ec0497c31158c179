"""Compare drawing from a bundle (onnxruntime, numpy) with diffusers on torch, on the same machine in the same run.

`python -m benchmarks.sampler [--bundle FOLDER --control-bundle FOLDER]` prints a table and one JSON line. Without
bundles it exports the built-in model to a temporary folder first, alone and with a ControlNet, and this one also with
weights stored in fewer bits, of which a second table shows how far each is from torch. Each measurement is a process
of its own: `import` is of the sampler with onnxruntime, or of torch with diffusers; `cold start` is from its
beginning to the first image of one step less that image's drawing, so imports, hashes and weights; `image` is the
median time of an image, drawn one or four at a time; `peak` is the largest resident memory. Both use as many threads
as there are cores (or --threads). torch draws with the built-in model of float32 weights, the bundle holds the same;
the ControlNets differ, since speed does not depend on their weights. The order alternates, and the least of the
repeats counts.

Limits, judged from two repeats on, and exit code 1 where one is not kept: each time and CPU time of an image is at most
that of torch. On a busy machine wall clocks differ by more than the engines, and CPU seconds tell them apart.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.report import Beside, Limit, ReportTable, report
from tools.export.stored_weights import Precision

PROMPT = "simulated breast ultrasound, benign"
BATCHES = (1, 4)
ENGINES = ("onnxruntime", "torch")
IMPORTS = {"onnxruntime": ("sampler.command", "sampler.draw", "onnxruntime"), "torch": ("torch", "diffusers")}
TIMES = {
    "import_s": "import s",
    "cold_start_s": "cold start s",
    "image_s_batch_1": "image s",
    "cpu_s_batch_1": "its CPU s",
    "image_s_batch_4": "of 4, image s",
    "cpu_s_batch_4": "of 4, CPU s",
}
SHOWN_BESIDE = {"cold_start_s": "cold start", "image_s_batch_1": "an image", "image_s_batch_4": "an image of 4"}
MIN_JUDGED_REPEATS = 2
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def measure(engine: str, bundle: Path, control: bool, steps: int) -> dict[str, float]:
    """Return seconds and bytes of this process."""
    began = _process_start()
    imported = _import_s(engine)
    draw = _draw_with_bundle(bundle, control) if engine == "onnxruntime" else _draw_with_torch(control)
    draw(1, 1)
    first = time.time()
    draw(1, 1)
    figures = {"import_s": imported, "cold_start_s": 2 * first - began - time.time()}
    for batch in BATCHES:
        seconds, cpu_seconds = [], []
        for _ in range(3):
            start, cpu_start = time.perf_counter(), time.process_time()
            draw(batch, steps)
            seconds.append((time.perf_counter() - start) / batch)
            cpu_seconds.append((time.process_time() - cpu_start) / batch)
        figures[f"image_s_batch_{batch}"] = median(seconds)
        figures[f"cpu_s_batch_{batch}"] = median(cpu_seconds)
    status = Path("/proc/self/status").read_text()
    figures["peak_bytes"] = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return figures


def _import_s(engine: str) -> float:
    """Return how long the imports of an engine take, in seconds."""
    start = time.perf_counter()
    for name in IMPORTS[engine]:
        importlib.import_module(name)
    return time.perf_counter() - start


def _draw_with_bundle(path: Path, control: bool):  # type: ignore[no-untyped-def]
    from contextlib import ExitStack

    import numpy as np

    from sampler.bundle import open_bundle
    from sampler.draw import Drawer, Settings, Wish

    drawer = Drawer(ExitStack().enter_context(open_bundle(path)))
    side = drawer.manifest.resolution
    mask = np.zeros((side, side), np.uint8) if control else None

    def draw(batch: int, steps: int) -> None:
        wishes = [Wish(PROMPT, "", seed, mask) for seed in range(batch)]
        drawer.draw(wishes, Settings("dpmsolver++", steps, 5.0, 0.0))

    return draw


def _draw_with_torch(control: bool):  # type: ignore[no-untyped-def]
    import torch

    from models.base import ModelConfig
    from models.controlnet import load_control_pipeline, load_controlnet
    from models.sampling import SamplingConfig, sample
    from models.stable_diffusion import load_pipeline
    from sampler.threads import num_threads

    torch.set_num_threads(num_threads())
    config = ModelConfig(base="tiny")
    if control:
        controlnet = load_controlnet(config, torch.float32, 0).eval()
        pipeline = load_control_pipeline(config, "cpu", torch.float32, controlnet=controlnet)
    else:
        pipeline = load_pipeline(config, "cpu", torch.float32)

    def draw(batch: int, steps: int) -> None:
        hints = torch.zeros(batch, 3, 128, 128) if control else None
        settings = SamplingConfig(steps=steps, guidance=5.0)
        sample(pipeline, [PROMPT] * batch, range(batch), settings, hints_N3HW=hints)

    return draw


def _process_start() -> float:
    """Return when this process began, in seconds since 1970."""
    after_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - float(Path("/proc/uptime").read_text().split()[0]) + after_boot


def export_bundles(folder: Path) -> tuple[Path, Path]:
    """Write the built-in model as a bundle, alone and with a ControlNet, and return both."""
    from benchmarks.controlled_model import write_controlled_model
    from data.hints import hint_colours
    from data.manifest import PALETTE
    from tools.export.export import export

    control = write_controlled_model("tiny", folder / "control", {"hint_colours": hint_colours(PALETTE)})
    bundles = folder / "bundle", folder / "control-bundle"
    for source, bundle in zip(("tiny", str(control)), bundles, strict=True):
        export(source, bundle, "onnx")
    return bundles


def precision_table(control_bundle: Path, folder: Path) -> ReportTable:
    """Return how far bundles of each precision are from torch, with the limits of an export; made from one's model."""
    from tools.export.export import export
    from tools.export.model_card import LABELS

    said = {}
    for precision in PRECISIONS:
        bundle = control_bundle
        if precision != "fp32":
            bundle = folder / precision
            export(str(folder / "control"), bundle, "onnx", precision=precision)
        said[precision] = json.loads((bundle / "manifest.json").read_text())["parity"]
    rows = [
        [label, *(f"{one['errors'][key]:.2g} of {one['limits'][key]:.2g}" for one in said.values())]
        for key, label in LABELS.items()
    ]
    title = "largest difference to torch, and what an export lets through, by precision of the weights"
    return ReportTable(title, ("of", *PRECISIONS), rows)


def compare(bundle: Path, control: bool, steps: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return the least figures of each engine over processes that alternate."""
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(repeats):
        for engine in ENGINES:
            command = [sys.executable, "-m", "benchmarks.sampler", "--measure", engine, "--bundle", str(bundle)]
            command += ["--steps", str(steps), *(["--control"] if control else [])]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[engine].append(json.loads(done.stdout.splitlines()[-1]))
    return {engine: {key: min(run[key] for run in found) for key in found[0]} for engine, found in runs.items()}


def main() -> int:
    """Print the table and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description="Drawing from a bundle against diffusers on torch.")
    parser.add_argument("--bundle", type=Path, help="bundle of the built-in model, fp32; default: a new one")
    parser.add_argument("--control-bundle", type=Path, help="the same with a ControlNet; default: new, with --bundle")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process; default: all cores")
    parser.add_argument("--measure", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--control", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.bundle, arguments.control, arguments.steps)))
        return 0
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        bundles = {"without": arguments.bundle, "with": arguments.control_bundle}
        if arguments.bundle is None:
            bundles = dict(zip(bundles, export_bundles(Path(folder)), strict=True))
            tables.append(precision_table(Path(folder) / "control-bundle", Path(folder)))
        figures = {
            control: compare(bundle, control == "with", arguments.steps, arguments.repeats)
            for control, bundle in bundles.items()
            if bundle is not None
        }
    rows = [
        [control, engine, *(f"{found[key]:.3f}" for key in TIMES), f"{found['peak_bytes'] / 1e6:.0f}"]
        for control, engines in figures.items()
        for engine, found in engines.items()
    ]
    title = f"an image of {arguments.steps} steps with guidance, {arguments.threads} threads"
    head = ("ControlNet", "engine", *TIMES.values(), "peak MB")
    rounded = {
        control: {engine: {key: round(value, 4) for key, value in found.items()} for engine, found in engines.items()}
        for control, engines in figures.items()
    }
    facts = {"threads": arguments.threads, "figures": rounded}
    limits = limits_of(figures) if arguments.repeats >= MIN_JUDGED_REPEATS else []
    return report("sampler", [ReportTable(title, head, rows), *tables], beside(figures), facts, limits)


def limits_of(figures: dict[str, dict[str, dict[str, float]]]) -> list[Limit]:
    """Return that no wall or CPU time of an image is longer than torch's."""
    return [
        Limit(f"{TIMES[key]} over that of torch, {control} ControlNet", engines["onnxruntime"][key] / theirs, 1.0)
        for control, engines in figures.items()
        for key, theirs in engines["torch"].items()
        if "batch" in key
    ]


def beside(figures: dict[str, dict[str, dict[str, float]]]) -> list[Beside]:
    """Return the sampler's cold start, an image alone and of four, and peak memory beside those of torch."""
    found = []
    for control, engines in figures.items():
        ours, theirs = (engines[engine] for engine in ENGINES)
        for key, said in SHOWN_BESIDE.items():
            what = f"sampler, {said}, {control} ControlNet"
            theirs_said = f"diffusers on torch {theirs[key]:.2f} s"
            found.append(Beside(what, f"{ours[key]:.2f} s", theirs_said, ours[key] / theirs[key], "time"))
        key = "peak_bytes"
        what, theirs_said = f"sampler, peak, {control} ControlNet", f"diffusers on torch {theirs[key] / 1e6:.0f} MB"
        found.append(Beside(what, f"{ours[key] / 1e6:.0f} MB", theirs_said, ours[key] / theirs[key], "memory"))
    return found


if __name__ == "__main__":
    sys.exit(main())
