"""Compare drawing from a bundle (onnxruntime, numpy) with diffusers on torch, on the same machine in the same run.

`python -m benchmarks.sampler [--bundle FOLDER --control-bundle FOLDER]` prints a table and one JSON line. Without
bundles it exports the built-in model to a temporary folder first, alone and with a ControlNet. Each measurement is a
process of its own: `cold start` is from its beginning to the first image of one step less that image's drawing, so
imports, hashes and weights; `image` is the median time of an image, drawn one or four at a time; `peak` is the largest
resident memory. Both use as many threads as there are cores (or --threads). torch draws with the built-in model of
float32 weights, the bundle holds the same; the ControlNets differ, since speed does not depend on their weights. The
order alternates, and the least of the repeats counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.report import Beside, ReportTable, report

PROMPT = "simulated breast ultrasound, benign"
BATCHES = (1, 4)
ENGINES = ("onnxruntime", "torch")


def measure(engine: str, bundle: Path, control: bool, steps: int) -> dict[str, float]:
    """Return seconds and bytes of this process."""
    began = _process_start()
    draw = _draw_with_bundle(bundle, control) if engine == "onnxruntime" else _draw_with_torch(control)
    draw(1, 1)
    first = time.time()
    draw(1, 1)
    figures = {"cold_start_s": 2 * first - began - time.time()}
    for batch in BATCHES:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            draw(batch, steps)
            seconds.append((time.perf_counter() - start) / batch)
        figures[f"image_s_batch_{batch}"] = median(seconds)
    status = Path("/proc/self/status").read_text()
    figures["peak_bytes"] = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return figures


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
    from models.sampling import sample
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
        sample(pipeline, [PROMPT] * batch, range(batch), steps=steps, guidance=5.0, hints_N3HW=hints)

    return draw


def _process_start() -> float:
    """Return when this process began, in seconds since 1970."""
    after_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - float(Path("/proc/uptime").read_text().split()[0]) + after_boot


def export_bundles(folder: Path) -> tuple[Path, Path]:
    """Write the built-in model as a bundle, alone and with a ControlNet, and return both."""
    from data.hints import hint_colours
    from data.manifest import PALETTE
    from tests.controlled_model import write_controlled_model
    from tools.export.export import export

    control = write_controlled_model("tiny", folder / "control", {"hint_colours": hint_colours(PALETTE)})
    bundles = folder / "bundle", folder / "control-bundle"
    for source, bundle in zip(("tiny", str(control)), bundles, strict=True):
        export(source, bundle, "onnx")
    return bundles


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


def main() -> None:
    """Print the table and the JSON line."""
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
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        bundles = {"without": arguments.bundle, "with": arguments.control_bundle}
        if arguments.bundle is None:
            bundles = dict(zip(bundles, export_bundles(Path(folder)), strict=True))
        figures = {
            control: compare(bundle, control == "with", arguments.steps, arguments.repeats)
            for control, bundle in bundles.items()
            if bundle is not None
        }
    rows = [
        [control, engine, f"{cold:.2f}", f"{one:.3f}", f"{four:.3f}", f"{peak / 1e6:.0f}"]
        for control, engines in figures.items()
        for engine, (cold, one, four, peak) in ((engine, found.values()) for engine, found in engines.items())
    ]
    title = f"an image of {arguments.steps} steps with guidance, {arguments.threads} threads"
    head = ("ControlNet", "engine", "cold start s", "image s", "of 4, image s", "peak MB")
    rounded = {
        control: {engine: {key: round(value, 4) for key, value in found.items()} for engine, found in engines.items()}
        for control, engines in figures.items()
    }
    facts = {"threads": arguments.threads, "figures": rounded}
    report("sampler", [ReportTable(title, head, rows)], beside(figures), facts)


def beside(figures: dict[str, dict[str, dict[str, float]]]) -> list[Beside]:
    """Return cold start, an image and peak memory of the sampler beside those of diffusers on torch."""
    found = []
    for control, engines in figures.items():
        ours, theirs = (engines[engine] for engine in ENGINES)
        for key, said in (("cold_start_s", "cold start"), ("image_s_batch_1", "an image")):
            what = f"sampler, {said}, {control} ControlNet"
            theirs_said = f"diffusers on torch {theirs[key]:.2f} s"
            found.append(Beside(what, f"{ours[key]:.2f} s", theirs_said, ours[key] / theirs[key], "time"))
        key = "peak_bytes"
        what, theirs_said = f"sampler, peak, {control} ControlNet", f"diffusers on torch {theirs[key] / 1e6:.0f} MB"
        found.append(Beside(what, f"{ours[key] / 1e6:.0f} MB", theirs_said, ours[key] / theirs[key], "memory"))
    return found


if __name__ == "__main__":
    main()
