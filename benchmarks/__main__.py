"""Run all benchmarks one after another and write docs/benchmarks.md: `python -m benchmarks`, which `make bench` calls.

Each is a process of its own, with sizes that take half an hour together on 2 slow cores. One that fails is told, and
the others go on; the exit code is then 1. `--only NAME` runs some, and `--quick` all with the smallest sizes, to see
that they work; neither writes the page unless `--page FILE` says where. Figures count on a machine that does nothing
else: the page tells the load before the first one and after the last, of which one or two are the benchmarks' own.

`--gpu` takes those for a CUDA machine instead and writes docs/benchmarks-gpu.md; benchmarks/gpu.sh calls it. Not among
them: benchmarks.gpu_table, benchmarks.memory_table and benchmarks.scaling, which measure nothing and write into pages
of their own; and benchmarks.evaluation, which would take the page over its time: make bench NAME=evaluation.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from textwrap import fill
from typing import Any

from benchmarks.report import Beside
from benchmarks.written_table import markdown_table
from data.processes import num_cores

PAGE, GPU_PAGE = Path("docs/benchmarks.md"), Path("docs/benchmarks-gpu.md")
FOLDER = Path(__file__).parent
LIBRARIES = ("accelerate", "onnxruntime", "safetensors")


@dataclass(frozen=True)
class Part:
    """A benchmark of the page. arguments: those that the page is made with; quick: of a run that only tries it."""

    name: str
    heading: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """What `python -m` takes."""
        return f"benchmarks.{self.name}"

    @property
    def first_line(self) -> str:
        """What it measures, as its file says."""
        docstring = ast.get_docstring(ast.parse((FOLDER / f"{self.name}.py").read_text(encoding="utf-8")))
        return (docstring or "").partition("\n")[0]


PARTS = (
    Part("engine", "Engine", ("--rounds", "4", "--micro-size", "4"), ("--rounds", "2", "--micro-size", "2")),
    Part("cached_latents", "Latents, cached or not", (), ("--count", "16", "--rounds", "1", "--micro-size", "2")),
    Part(
        "memory",
        "Memory of a step",
        ("--only", "tiny, fp32", "--only", "70M, bf16", "--only", "70M, offloaded"),
        ("--only", "tiny, fp32"),
    ),
    Part("activations", "Activations", (), ("--no-compile",)),
    Part("loader", "Loader", ("--samples", "2000"), ("--samples", "50", "--resolution", "64")),
    Part("start", "Start and resume", ("--repeats", "2"), ("--repeats", "1")),
    Part("merge", "Merge", ("--rounds", "2", "--methods", "soup"), ("--unet", "tiny", "--rounds", "1")),
    Part("sampler", "Sampler", ("--steps", "10", "--repeats", "2"), ("--steps", "2", "--repeats", "1")),
    Part(
        "matrix",
        "8-bit against 32-bit",
        ("--steps", "100", "--nproc", "2", "--cells", "adamw8bit-zero2-fp32"),
        ("--steps", "2", "--cells", "adamw8bit-zero2-fp32"),
    ),
    Part("moments", "Stored precision of latents"),
    Part("simulate", "Simulator"),
)
GPU_PARTS = (
    Part(
        "gpu",
        "Training",
        ("--folder", "runs/benchmarks-gpu"),
        ("--model", "tiny", "--micro-size", "1", "--steps", "1", "--cells", "diffusion-zero2-adamw8bit"),
    ),
    Part(
        "cached_latents",
        "Latents, cached or not",
        ("--base", "sd15", "--micro-size", "4", "--optimizers", "adamw8bit"),
        ("--count", "16", "--rounds", "1", "--micro-size", "2"),
    ),
    Part(
        "memory",
        "Memory of a step",
        ("--only", "70M, bf16", "--only", "SD 1.5, bf16", "--only", "SD 1.5, 512 px"),
        ("--only", "tiny, fp32"),
    ),
    Part("activations", "Activations"),
    Part("engine", "Engine", (), ("--rounds", "2", "--micro-size", "2")),
    Part("start", "Start and resume", ("--repeats", "2"), ("--repeats", "1")),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a part. result: its JSON line, or None where it did not come so far."""

    part: Part
    arguments: tuple[str, ...]
    seconds: float
    code: int
    result: dict[str, Any] | None

    @property
    def has_broken_limit(self) -> bool:
        """Whether it measured all, and a figure is beyond its limit."""
        return any(not limit["is_kept"] for limit in (self.result or {}).get("limits", ()))

    @property
    def problem(self) -> str | None:
        """What is wrong with it, if anything."""
        if self.has_broken_limit:
            return "does not keep a limit"
        if self.code != 0:
            return f"ended with exit code {self.code}"
        return "reported nothing" if self.result is None else None


def run(part: Part, arguments: tuple[str, ...]) -> Outcome:
    """Run a part and show what it prints, but for its JSON line."""
    print(f"== {part.module} {' '.join(arguments)}", flush=True)
    began_s = time.perf_counter()
    result = None
    with subprocess.Popen(
        [sys.executable, "-m", part.module, *arguments], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"benchmark"'):
                result = json.loads(line)
            else:
                print(line, end="", flush=True)
    outcome = Outcome(part, arguments, time.perf_counter() - began_s, process.returncode, result)
    print(f"== {part.module}: {outcome.problem or 'done'}, {outcome.seconds:.0f} s\n", flush=True)
    return outcome


def facts() -> dict[str, str]:
    """Return what figures depend on: when, on what, with which versions, of which commit. No name or path of it."""
    import torch

    from benchmarks.activations import hardware
    from launch.record import versions

    has_gpu = torch.cuda.is_available()
    hardware_said = f"{hardware(torch.device('cpu'))}, {num_cores()} cores"
    if hasattr(os, "sysconf"):
        hardware_said += f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB of memory"
    hardware_said += f", {hardware(torch.device('cuda'))}" if has_gpu else ", no GPU"
    found = versions() | {name: metadata.version(name) for name in LIBRARIES}
    commit = found.pop("commit") or "unknown"
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": hardware_said,
        "commit": commit,
        "versions": ", ".join(f"{name} {version}" for name, version in found.items()),
    }


def page(outcomes: Sequence[Outcome], about: dict[str, str], command: str) -> str:
    """Return the page, whole."""
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    intro = (
        f"Written by `{command}`, which runs the programs of `benchmarks/` one after another ({minutes:.0f} minutes"
        " here). Each figure stands beside that of an alternative which anybody can have, measured in the same run on"
        " the same machine: read the ratios, the seconds are this machine's. Each process has one thread, unless it is"
        " said. What fits which GPU is on [a page of its own](which-gpu.md), and so is what many GPUs send"
        " ([scaling](scaling.md)); both are computed."
    )
    lines = [
        "# Benchmarks",
        "",
        f"<!-- written whole by {command}: what is changed here is lost -->",
        "",
        fill(intro, 120, break_long_words=False, break_on_hyphens=False),
        "",
        markdown_table(["", ""], [[name, said] for name, said in about.items()]),
        "",
    ]
    if failed := [outcome for outcome in outcomes if outcome.problem and not outcome.has_broken_limit]:
        lines += [f"**{', '.join(outcome.part.module for outcome in failed)} failed**: figures are missing.", ""]
    if beyond := [outcome for outcome in outcomes if outcome.has_broken_limit]:
        lines += [f"**{', '.join(outcome.part.module for outcome in beyond)}**: a limit is not kept, see below.", ""]
    beside = [Beside(**one) for outcome in outcomes for one in (outcome.result or {}).get("beside", ())]
    if beside:
        cells = [[one.what, one.ours, one.alternative, one.said] for one in beside]
        lines += ["## Side by side", "", markdown_table(["", "ours", "beside it", "ratio"], cells), ""]
    limits = [
        [limit["what"], f"{limit['figure']:.3f}", f"{limit['limit']:.3f}", "yes" if limit["is_kept"] else "**no**"]
        for outcome in outcomes
        for limit in (outcome.result or {}).get("limits", ())
    ]
    if limits:
        lines += ["## Limits", "", markdown_table(["", "measured", "at most", "kept"], limits), ""]
    for outcome in outcomes:
        lines += [f"## {outcome.part.heading}", "", *section(outcome)]
    return "\n".join(lines).rstrip("\n") + "\n"


def section(outcome: Outcome) -> list[str]:
    """Return the lines of one part, without its heading."""
    words = " ".join(f"'{word}'" if " " in word else word for word in outcome.arguments)
    file = f"{outcome.part.name}.py"
    lines = [
        outcome.part.first_line,
        "",
        f"    python -m {outcome.part.module} {words}".rstrip(),
        "",
        f"{outcome.seconds:.0f} s; what is measured how: [{file}](../benchmarks/{file}).",
        "",
    ]
    if outcome.problem:
        lines += [f"**It {outcome.problem}.**", ""]
    for table in (outcome.result or {}).get("tables", ()):
        lines += [f"{table['title']}:", "", markdown_table(table["head"], table["rows"]), ""]
    return lines


def command_of(options: argparse.Namespace) -> str:
    """Return what a person calls to have the same page."""
    only = [word for name in options.only or () for word in ("--only", name)]
    if options.gpu:
        return " ".join(["benchmarks/gpu.sh", *(["--quick"] if options.quick else []), *only])
    return (
        " ".join(["python -m benchmarks", *(["--quick"] if options.quick else []), *only])
        if only or options.quick
        else "make bench"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and write the page; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({part.name for part in (*PARTS, *GPU_PARTS)})
    parser.add_argument("--gpu", action="store_true", help="those for a CUDA machine")
    parser.add_argument("--only", choices=names, action="append", help="one of them; repeat it")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: to try the programs, not to measure")
    parser.add_argument("--page", type=Path, help=f"the page to write; default: {PAGE}, of a whole run alone")
    options = parser.parse_args(arguments)
    is_whole = not (options.quick or options.only)
    about, load_before = facts(), os.getloadavg()[0]
    parts, page_of_all = (GPU_PARTS, GPU_PAGE) if options.gpu else (PARTS, PAGE)
    chosen = [part for part in parts if not options.only or part.name in options.only]
    if not chosen:
        parser.error(f"none of {', '.join(options.only)} is among those {'with' if options.gpu else 'without'} --gpu")
    outcomes = [run(part, part.quick if options.quick else part.arguments) for part in chosen]
    load = f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} after: mean number of running processes in a minute"
    target = options.page or (page_of_all if is_whole else None)
    if target:
        target.write_text(page(outcomes, about | {"load": load}, command_of(options)), encoding="utf-8")
        print(f"wrote {target}")
    for outcome in outcomes:
        print(f"{outcome.part.module}: {outcome.problem or 'done'}, {outcome.seconds:.0f} s")
    print(f"{sum(outcome.seconds for outcome in outcomes) / 60:.1f} minutes")
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
