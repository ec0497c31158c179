"""The demo's curriculum, killed twice on its way, ends as one that nothing happened to, to the bit.

python -m tests.curriculum_drill [KEY=VALUE ...] [--out runs/curriculum_drill]
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.config import RunConfig, load_config
from launch.prepare import encode_databases, prepare_databases
from launch.quiet import quiet_libraries
from launch.step_log import read_steps
from tests.launch.rank_pids import rank_pids

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"
NUM_RANKS = 2
# The stages that are killed, once more than half of their steps are done: one with replay, and the ControlNet's.
KILLED_IN = ("cardiac", "control")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def drill(folder: Path, overrides: list[str]) -> None:
    """Run it straight and with kills, and compare every stage's weights, steps and validations.

    Raises: AssertionError if the two differ, or a start failed.
    """
    overrides = [*overrides, f"shards={folder / 'shards'}"]
    straight, killed = (load_config(CONFIG, [*overrides, f"run={folder / name}"]) for name in ("straight", "killed"))
    prepare_databases(straight)
    encode_databases(straight)
    start(straight, overrides, folder / "straight.log", None)
    for number, name in enumerate(KILLED_IN):
        start(killed, overrides, folder / f"killed-{number}.log", name)
        print(f"killed in stage {name} after {len(steps_of(killed, name))} steps", flush=True)
    start(killed, overrides, folder / "killed.log", None)
    for stage in straight.stages:
        files = [f"model/{stage.network}/{WEIGHTS}", "steps.jsonl", "validation.jsonl"]
        for file in files:
            one, other = (run.stage_path(stage) / file for run in (straight, killed))
            assert one.read_bytes() == other.read_bytes(), f"{file} of stage {stage.name} differs"
    one, other = (run.run / "forgetting.json" for run in (straight, killed))
    assert one.read_bytes() == other.read_bytes(), "the forgetting matrix differs"
    print(
        f"{len(straight.stages)} stages, killed in two of them: weights, steps and validations are the same to the bit"
    )


def start(config: RunConfig, overrides: list[str], log: Path, killed_in: str | None) -> None:
    """Start a run, or go on with it; kill all its ranks within a stage, or wait for its end."""
    program = f"import sys; from launch.spawn import run_ranks; sys.exit(run_ranks(sys.argv[1:], {NUM_RANKS}))"
    command = [sys.executable, "-c", program, "-m", "launch.rank_process", str(CONFIG), *overrides, f"run={config.run}"]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        if killed_in is not None:
            num_steps = next(stage.steps for stage in config.stages if stage.name == killed_in)
            assert num_steps is not None
            while len(steps_of(config, killed_in)) <= num_steps // 2:
                assert process.poll() is None, log.read_text(encoding="utf-8")
                time.sleep(0.01)
            for pid in rank_pids(process.pid).values():
                os.kill(pid, signal.SIGKILL)
        code = process.wait()
    finally:
        process.terminate()
    assert code == (1 if killed_in else 0), log.read_text(encoding="utf-8")


def steps_of(config: RunConfig, stage: str) -> list[dict[str, object]]:
    """Return the steps that a stage has logged."""
    path = config.run / "stages" / stage / "steps.jsonl"
    return read_steps(path) if path.exists() else []


def main() -> None:
    """Run the drill on the demo's configuration, as it is or with overrides."""
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/curriculum_drill"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    drill(arguments.out.resolve(), arguments.overrides)


if __name__ == "__main__":
    main()
