"""Measure how long it takes to begin and to go on: from the command to the end of its first step.

`python -m benchmarks.start` prints a table and one JSON line. `sonoshard train` on the built-in model beside diffusers'
text-to-image example with accelerate's checkpoints (benchmarks/diffusers_example.py), on the same simulated images and
the same micro batch, each a process of its own. The order alternates, and the least of the repeats counts. Columns:

    start s      to the end of step 1, from the start of the command: imports, checks, weights, the first step. Ours
                 measures a validation loss first, and draws a preview, each of one sample and one step here
    resume s     the same from a checkpoint: which is hashed (ours) and loaded. The example begins an epoch anew then,
                 ours goes on at the very next sample
    stop s       from a TERM to the end, with a checkpoint written. The example does not listen: killed, it loses all
                 since the last one
    checkpoint   MB on disk: 8-bit moments and master weights of ours; weights and 32-bit moments
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.activations import hardware
from benchmarks.report import Beside, ReportTable, report
from launch.config import load_config
from launch.errors import EXIT_STOPPED
from launch.prepare import encode_databases, prepare_databases
from launch.quiet import quiet_libraries

CONTENDERS = ("ours", "diffusers' example")
MICRO_SIZE = 8
TIMES = "stages/one/times.jsonl"
LIMIT_S = 300.0


def write_config(folder: Path, count: int) -> Path:
    """Write a configuration of one long stage, which shows at its start as little as it can."""
    config = {
        "run": str(folder / "run"),
        "model": {"base": "tiny"},
        "databases": {"breast": {"kind": "simulated", "preset": "breast", "size": 128, "count": count}},
        "batch": {"global_size": MICRO_SIZE, "micro_size": MICRO_SIZE},
        "ema": {"lengths": []},
        "validation": {"every_steps": None, "num_samples": 1, "timesteps_per_sample": 1},
        "preview": {"every_steps": None, "prompts": [""], "sampling": {"steps": 1}},
        "stages": [{"name": "one", "databases": ["breast"], "steps": 100_000}],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def times_in(file: Path) -> list[float]:
    """Return when each step ended, in seconds since 1970; none while there is no such file."""
    if not file.exists():
        return []
    return [
        json.loads(line)["time"]
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True)
        if line[-1] == "\n"
    ]


def train_until_told(config: Path, run: Path) -> dict[str, float]:
    """Start `sonoshard train`, stop it after some steps, and return what its first step and its end took.

    Raises: RuntimeError if it ends otherwise than stopped on request, or takes no step.
    """
    before = len(times_in(run / TIMES))
    began = time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "train", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while len(times_in(run / TIMES)) < before + 3 and process.poll() is None and time.time() < began + LIMIT_S:
            time.sleep(0.01)
        told = time.time()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    found = times_in(run / TIMES)
    if process.returncode != EXIT_STOPPED or len(found) <= before:
        raise RuntimeError(f"sonoshard train ended with {process.returncode}: {said.decode()[-2000:]}")
    return {"first_step_s": found[before] - began, "stop_s": time.time() - told}


def ours(folder: Path) -> dict[str, float]:
    """Return the figures of one start and one resume of ours in a folder that has shards."""
    run = folder / "run"
    started = train_until_told(folder / "config.yaml", run)
    resumed = train_until_told(folder / "config.yaml", run)
    newest = (
        run / "stages/one/checkpoints" / (run / "stages/one/checkpoints/LATEST").read_text(encoding="utf-8").strip()
    )
    return {
        "start_s": started["first_step_s"],
        "resume_s": resumed["first_step_s"],
        "stop_s": started["stop_s"],
        "checkpoint_mb": folder_mb(newest),
    }


def theirs(folder: Path) -> dict[str, float]:
    """Return the same figures of diffusers' example, which has no stop."""
    out = folder / "example"
    seconds = []
    for resume in ([], ["--resume"]):
        before = len(times_in(out / "times.jsonl"))
        command = [sys.executable, "-m", "benchmarks.diffusers_example", str(folder / "run/manifest.parquet"), str(out)]
        began = time.time()
        subprocess.run([*command, "--micro-size", str(MICRO_SIZE), *resume], check=True, capture_output=True)
        seconds.append(times_in(out / "times.jsonl")[before] - began)
    return {"start_s": seconds[0], "resume_s": seconds[1], "checkpoint_mb": folder_mb(out / "checkpoint")}


def folder_mb(folder: Path) -> float:
    """Return the size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure(folder: Path, count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return the least figures of each contender, in seconds and MB."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for number in range(repeats):
        place = folder / str(number)
        place.mkdir(parents=True)
        config = load_config(write_config(place, count))
        prepare_databases(config)
        encode_databases(config)
        turns = list(zip(CONTENDERS, (ours, theirs), strict=True))
        for name, one in turns[:: 1 if number % 2 == 0 else -1]:
            runs[name].append(one(place))
    return {name: {key: min(run[key] for run in found) for key in found[0]} for name, found in runs.items()}


def main() -> None:
    """Print the table and the JSON line."""
    import torch

    parser = argparse.ArgumentParser(description="Seconds to the first step, from the beginning and from a checkpoint.")
    parser.add_argument("--count", type=int, default=32, help="simulated images")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.count, arguments.repeats)
    rows = [
        [
            name,
            *(
                f"{found[key]:.2f}" if key in found else ""
                for key in ("start_s", "resume_s", "stop_s", "checkpoint_mb")
            ),
        ]
        for name, found in figures.items()
    ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    title = f"tiny, micro batch {MICRO_SIZE}, {hardware(device)}, {os.environ['OMP_NUM_THREADS']} thread(s)"
    head = ("contender", "start s", "resume s", "stop s", "checkpoint")
    mine, other = (figures[name] for name in CONTENDERS)
    beside = [
        Beside(what, f"{mine[key]:.2f} s", f"{CONTENDERS[1]} {other[key]:.2f} s", mine[key] / other[key], "time")
        for key, what in (("start_s", "command to first step"), ("resume_s", "the same from a checkpoint"))
    ]
    report("start", [ReportTable(title, head, rows)], beside, {"figures": figures})


if __name__ == "__main__":
    quiet_libraries()
    main()
