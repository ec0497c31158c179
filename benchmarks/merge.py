"""Measure merging in pieces against loading everything: seconds, and memory of the process at its peak.

`python -m benchmarks.merge [--unet tiny|sd15] [--dtype fp16|fp32] [--folder F]` prints a table and one JSON line. Three
UNets of random weights are written to a folder that is removed afterwards. A mean of them and TIES are made twice,
each in a process of its own: `pieces`, as `sonoshard merge` does, and `load all`, with the same formulas on what the
safetensors library loads. Both write a file, put it on the disk, and hash it and its parents. They take turns
`--rounds` times, in an order that alternates, and the quickest one of each counts. Anonymous memory is what no file
backs; RSS has pages of mapped files in it too.

Limits, and exit code 1 where one is not kept: a mean in pieces takes no longer than with all models in memory (judged
from two rounds on), and anonymous memory is at most twice the largest tensor, as float32, and 200 MB.
"""

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.report import Beside, Limit, ReportTable, report
from launch.freed_memory import keep_freed_memory
from models.durable import flush
from models.merging.formulas import Trim, elected_mean, num_kept, weighted_sum
from models.merging.merged import Merged
from models.merging.recipe import make_recipe
from models.merging.source import FileSource, sha256_of_all
from models.merging.writer import write_pieces

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
NUM_SOURCES = 3
MIN_JUDGED_ROUNDS = 2
TIME_LIMIT = 1.0
MEMORY_LIMIT_TENSORS, MEMORY_LIMIT_MB = 2, 200
# Stable Diffusion 1.5, as diffusers describes it: 860 million parameters.
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}


def files_in(folder: Path) -> list[Path]:
    """Return where the base lies, then the models that are merged."""
    return [folder / f"{number}.safetensors" for number in range(NUM_SOURCES + 1)]


def write_unets(folder: Path, unet: str, dtype: torch.dtype, *, with_base: bool) -> list[Path]:
    """Write the models that are merged, of random weights, and their base where one is needed; return `files_in`."""
    from diffusers import UNet2DConditionModel

    from models.base import ModelConfig
    from models.stable_diffusion import empty_unet

    with torch.device("meta"):
        network = empty_unet(ModelConfig(base="tiny")) if unet == "tiny" else UNet2DConditionModel(**SD15)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    paths = files_in(folder)
    for number, path in enumerate(paths):
        if number == 0 and not with_base:
            continue
        generator = torch.Generator().manual_seed(number)
        state = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        save_file(state, path)
    return paths


def in_pieces(method: str, files: list[Path], out: Path) -> str:
    """Merge as the command does."""
    base = {"base": "base"} if method == "ties" else {}
    recipe = make_recipe(method=method, sources=[str(path) for path in files[1:]], **base)
    sources = [FileSource(str(path), [path]) for path in files[1:]]
    of_base = FileSource("base", files[:1]) if base else None
    hashes = sha256_of_all([*sources, *([of_base] if of_base else [])])
    merged = Merged(recipe, sources, of_base)
    return write_pieces(out, merged.tensors, merged.all_pieces(), {"parents": " ".join(hashes)})


def load_all(method: str, files: list[Path], out: Path) -> str:
    """Merge with all models in memory, as the library reads and writes them."""
    used = files[1:] if method == "soup" else files
    hashes = sha256_of_all([FileSource(str(path), [path]) for path in used])
    states = [load_file(path) for path in used]
    shares = [1 / NUM_SOURCES] * NUM_SOURCES
    merged = {}
    for name, first in states[0].items():
        tensors = [state[name].float() for state in states]
        merged[name] = (weighted_sum(tensors, shares) if method == "soup" else _ties(tensors, shares)).to(first.dtype)
    save_file(merged, out, metadata={"parents": " ".join(hashes)})
    flush(out)
    with out.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ties(tensors: list[Tensor], shares: list[float]) -> Tensor:
    base, *others = tensors
    tasks = [(other - base).flatten() for other in others]
    trimmed = [Trim(task.abs(), num_kept(task.numel(), 0.2))(task) for task in tasks]
    return base + elected_mean(trimmed, shares).view(base.shape)


WAYS: dict[str, Callable[[str, list[Path], Path], str]] = {"pieces": in_pieces, "load all": load_all}


class Peak(threading.Thread):
    """Looks at this process's memory every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous_bytes = 0

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
            self.anonymous_bytes = max(self.anonymous_bytes, 1024 * int(found[1]) if found else 0)
            time.sleep(0.005)


def measure_here(way: str, method: str, folder: Path) -> dict[str, Any]:
    """Merge once in this process and return what it took."""
    keep_freed_memory()  # as the command does
    files = files_in(folder)
    before = Peak()
    before.start()
    time.sleep(0.02)
    imported = before.anonymous_bytes
    began = time.perf_counter()
    WAYS[way](method, files, folder / "out.safetensors")
    seconds = time.perf_counter() - began
    rss = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    merged = load_file(folder / "out.safetensors")
    digest = hashlib.sha256(b"".join(bytes(merged[name].view(torch.uint8).numpy().data) for name in sorted(merged)[:9]))
    return {
        "seconds": seconds,
        "anonymous_mb": (before.anonymous_bytes - imported) / 1e6,
        "rss_mb": 1024 * int(rss[1]) / 1e6 if rss else None,
        "values": digest.hexdigest(),
    }


def measure(way: str, method: str, folder: Path) -> dict[str, Any]:
    """Return the same of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.merge", "--measure", way, method, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Print the table and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description="Merging in pieces against loading everything.")
    parser.add_argument("--unet", choices=("sd15", "tiny"), default="sd15", help="architecture; sd15: 860M parameters")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="of the files: 1.7 GB each, or 3.4 with fp32")
    parser.add_argument("--folder", type=Path, help="where five files of that size fit; default: the system's")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is measured")
    parser.add_argument("--methods", nargs="+", choices=("soup", "ties"), default=("soup", "ties"))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, method = arguments.measure
        print(json.dumps(measure_here(way, method, arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        with_base = "ties" in arguments.methods
        *_, file = write_unets(folder, arguments.unet, DTYPES[arguments.dtype], with_base=with_base)
        size_gb = file.stat().st_size / 1e9
        with safe_open(file, framework="pt") as opened:
            largest = max(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        figures: dict[str, dict[str, Any]] = {}
        for method in arguments.methods:
            orders = [list(WAYS)[:: 1 if number % 2 == 0 else -1] for number in range(arguments.rounds)]
            rounds = [{way: measure(way, method, folder) for way in order} for order in orders]
            best = {way: min((found[way] for found in rounds), key=lambda one: one["seconds"]) for way in WAYS}
            values = {found.pop("values") for found in best.values()}
            assert len(values) == 1, f"{method}: both ways must give the same values"
            figures[method] = best
    title = f"{NUM_SOURCES} UNets of {size_gb:.2f} GB ({arguments.unet}, {arguments.dtype}), the same values to the bit"
    rows = [
        [method, way, f"{found['seconds']:.2f}", f"{found['anonymous_mb']:.0f}", f"{found['rss_mb']:.0f}"]
        for method, ways in figures.items()
        for way, found in ways.items()
    ]
    table = ReportTable(title, ("method", "way", "s", "anonymous MB", "peak RSS MB"), rows)
    facts = {"unet": arguments.unet, "dtype": arguments.dtype, "omp_num_threads": os.environ.get("OMP_NUM_THREADS")}
    limits = limits_of(figures, largest, arguments.rounds)
    return report("merge", [table], beside(figures), {"figures": figures} | facts, limits)


def limits_of(figures: dict[str, dict[str, Any]], largest_numel: int, num_rounds: int) -> list[Limit]:
    """Return what must hold of methods by their names."""
    most_mb = MEMORY_LIMIT_TENSORS * 4 * largest_numel / 1e6 + MEMORY_LIMIT_MB
    limits = [
        Limit(f"merge by {method}, anonymous MB", ways["pieces"]["anonymous_mb"], most_mb)
        for method, ways in figures.items()
    ]
    if num_rounds >= MIN_JUDGED_ROUNDS and (ways := figures.get("soup")):
        ratio = ways["pieces"]["seconds"] / ways["load all"]["seconds"]
        limits.append(Limit("merge by soup, time over that of loading all", ratio, TIME_LIMIT))
    return limits


def beside(figures: dict[str, dict[str, Any]]) -> list[Beside]:
    """Return time and memory of each method in pieces, beside loading everything."""
    found = []
    for method, ways in figures.items():
        pieces, whole = ways["pieces"], ways["load all"]
        found.append(
            Beside(
                f"merge by {method}",
                f"{pieces['seconds']:.2f} s",
                f"all loaded by safetensors {whole['seconds']:.2f} s",
                pieces["seconds"] / whole["seconds"],
                "time",
            )
        )
        found.append(
            Beside(
                f"merge by {method}, anonymous memory",
                f"{pieces['anonymous_mb']:.0f} MB",
                f"all loaded by safetensors {whole['anonymous_mb']:.0f} MB",
                pieces["anonymous_mb"] / whole["anonymous_mb"],
                "memory",
            )
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
