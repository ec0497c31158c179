"""The kill drill: a run whose ranks are killed again and again ends as one that nothing happened to, to the bit.

python -m tests.drill [--kills 50] [--seed 0] [--out runs/drill]

Most kills are aimed at a save: its folder is there, or has slices, or a manifest, or was just renamed; some at a start,
which imports and loads. Every other start saves while it trains on. The ranks are frozen first and killed then, so that
what is told of a kill is what it hit. Linux only.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from distributed.checkpoint import step_folder
from launch.config import RunConfig, load_config
from launch.quiet import quiet_libraries
from launch.step_log import read_steps
from tests.launch.conftest import prepare_run
from tests.launch.rank_pids import rank_pids

NUM_RANKS = 2
SAVE_EVERY = 2
# Ranks that are left alone end within the spawner's grace; on a busy machine that takes longer.
MAX_SECONDS_TO_END = 60.0
AIMS = ("a start", "a step", "the save's folder", "its slices", "its manifest", "its rename")
# A start takes some ten seconds: kills at one come within so many delays.
START_DELAYS = 80


@dataclass(frozen=True)
class Moment:
    """When to kill: at `aim` of the save after `step`, or `delay_s` after the next step, or within a start.

    victim: a rank; None: all ranks. is_async: whether this start's saves are written while it trains on.
    """

    step: int
    aim: str
    victim: int | None
    delay_s: float
    is_async: bool

    @property
    def least_step(self) -> int:
        """The step that the next start must go on from at least: at most one save is lost, after a step none."""
        if self.aim == "a start":
            return 0  # which took no step
        return self.step - SAVE_EVERY * (self.aim != "a step" or self.is_async)


@dataclass(frozen=True)
class Start:
    """One start of the run: what it went on from, and what was killed where (empty where it came to its end).

    resumed: None where it was killed before it said so.
    """

    resumed: int | None
    killed: str
    is_in_save: bool


def plan(num_kills: int, seed: int) -> list[Moment]:
    """Return the moments, the last of them while the model is written.

    Each is one save further than the one before, so that every start gets beyond the save that was hit.
    """
    generator = random.Random(seed)
    aims = [*(generator.choice(AIMS) for _ in range(num_kills - 1)), "the model"]
    return [
        Moment(
            SAVE_EVERY * (number + 1), aim, generator.choice([None, 0, 1]), generator.uniform(0, 0.1), number % 2 == 1
        )
        for number, aim in enumerate(aims)
    ]


class Drill:
    """A run of twice the steps that the plan needs."""

    def __init__(self, config_path: Path, folder: Path, moments: list[Moment]) -> None:
        self.folder, self.moments = folder, moments
        settings = [
            f"shards={load_config(config_path).shards_path}",
            # Twice the plan: where steps are fast, a kill may come a save later than it was meant to.
            f"stages.0.steps={2 * moments[-1].step}",
            f"checkpoint.save_every_steps={SAVE_EVERY}",
            "validation.every_steps=null",
            "preview.every_steps=null",
        ]
        self._arguments = [str(config_path), *settings]

    def config(self, name: str) -> RunConfig:
        """Return the configuration of the run `name`."""
        return load_config(Path(self._arguments[0]), [*self._arguments[1:], f"run={self.folder / name}"])

    def start(self, name: str, moment: Moment | None) -> Start:
        """Start the run `name`, or go on with it; kill it at `moment`."""
        program = f"import sys; from launch.spawn import run_ranks; sys.exit(run_ranks(sys.argv[1:], {NUM_RANKS}))"
        is_async = moment is not None and moment.is_async
        command = [sys.executable, "-c", program, "-m", "launch.rank_process", *self._arguments]
        command.append(f"checkpoint.is_async={is_async}")
        log = self.folder / f"{name}.log"
        with log.open("w", encoding="utf-8") as stderr:
            process = subprocess.Popen([*command, f"run={self.folder / name}"], stderr=stderr)
        try:
            killed, is_in_save = self._kill(name, moment, process) if moment else ("", False)
            code = process.wait(MAX_SECONDS_TO_END if moment else None)
        finally:
            process.terminate()
        said = log.read_text(encoding="utf-8")
        assert code == (1 if moment else 0), said
        if moment:
            last_line = said.splitlines()[-1]
            assert re.search(r"rank \d failed first: ended by SIGKILL$", last_line), f"{killed}: {said}"
        resumed = re.search(r"resumed after step (\d+)", said)
        is_unsaid = resumed is None and moment is not None and moment.aim == "a start"
        return Start(None if is_unsaid else int(resumed[1]) if resumed else 0, killed, is_in_save)

    def _kill(self, name: str, moment: Moment, process: subprocess.Popen[bytes]) -> tuple[str, bool]:
        """Wait for the moment, kill, and return what was hit, and whether it was a save."""
        config = self.config(name)
        stage = config.stage_path(config.stages[0])
        moment = replace(moment, step=max(moment.step, next_save(stage)))
        while not (len(rank_pids(process.pid)) == NUM_RANKS if moment.aim == "a start" else has_come(moment, stage)):
            assert process.poll() is None, (self.folder / f"{name}.log").read_text(encoding="utf-8")
            time.sleep(0.0002)
        if moment.aim == "a step":
            time.sleep(moment.delay_s)
        elif moment.aim == "a start":
            end, began_at = time.monotonic() + START_DELAYS * moment.delay_s, last_step(stage)
            while time.monotonic() < end and last_step(stage) == began_at:  # where starts are fast, it trains by then
                time.sleep(0.01)
        pids = rank_pids(process.pid)
        assert len(pids) == NUM_RANKS, "the run ended before it was killed"
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)
        while not all(map(is_frozen, pids.values())):
            time.sleep(0.0002)
        if moment.aim == "a start":
            hit = f"{START_DELAYS * moment.delay_s:.1f} s into a start"
        else:
            hit = what_is_done(stage, config.checkpoint.keep_last)
        for rank, pid in pids.items():
            os.kill(pid, signal.SIGKILL if moment.victim in (None, rank) else signal.SIGCONT)
        who = "all ranks" if moment.victim is None else f"rank {moment.victim}"
        return f"{who} after step {last_step(stage)}, {hit}", hit.startswith("in the save")


def next_save(stage: Path) -> int:
    """Return the first step after all that the killed starts reached at which there is a save."""
    return (last_step(stage) // SAVE_EVERY + 1) * SAVE_EVERY


def last_step(stage: Path) -> int:
    """Return the last step that any start took; 0 where none did."""
    log = stage / "steps.jsonl"
    return max((entry["step"] for entry in read_steps(log)), default=0) if log.exists() else 0


def has_come(moment: Moment, stage: Path) -> bool:
    """Return whether the moment is there, or was missed."""
    root = stage / "checkpoints"
    final = step_folder(root, moment.step)
    partial = root / f".{final.name}.partial"
    if moment.aim == "the model":
        return (stage / ".model.partial").is_dir()
    if moment.aim == "a step":
        return last_step(stage) > moment.step
    if moment.aim == "the save's folder":
        return partial.is_dir() or final.is_dir()
    if moment.aim == "its slices":
        return any(partial.glob("*.safetensors")) or final.is_dir()
    if moment.aim == "its manifest":
        return (partial / "manifest.json").exists() or final.is_dir()
    return final.is_dir()


def what_is_done(stage: Path, keep_last: int) -> str:
    """Return which part of a save the files show, if any."""
    root = stage / "checkpoints"
    for partial in root.glob(".step-*.partial"):
        files = [path.name for path in partial.iterdir()]
        num_slices = sum(name.endswith(".safetensors") for name in files)
        manifest = "with" if "manifest.json" in files else "no"
        return f"in the save of {partial.name[1:14]}: {num_slices} slices, {manifest} manifest"
    names = sorted(path.name for path in root.glob("step-*"))
    latest = (root / "LATEST").read_text(encoding="utf-8").strip() if (root / "LATEST").exists() else None
    if names and names[-1] != latest:
        return f"in the save of {names[-1]}: renamed, not yet in LATEST"
    if len(names) > keep_last:
        return f"in the save of {names[-1]}: in LATEST, older ones not yet deleted"
    return "in the write of the model" if (stage / ".model.partial").is_dir() else "between saves"


def is_frozen(pid: int) -> bool:
    """Return whether a process is stopped, or has ended."""
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return status.rpartition(")")[2].split()[0] in "TZ"


def drill(config_path: Path, folder: Path, num_kills: int, seed: int) -> None:
    """Run once straight and once with kills, tell each, and compare.

    Raises: AssertionError if the two differ, if a start fell back by more than one save, or if fewer than a third of
    the kills hit a save.
    """
    moments = plan(num_kills, seed)
    runs = Drill(config_path, folder, moments)
    runs.start("straight", None)
    hits: Counter[bool] = Counter()
    least = 0  # the step that a start must go on from at least
    killed = runs.start("killed", moments[0])
    for number, moment in enumerate(moments):
        following = runs.start("killed", moments[number + 1] if number + 1 < num_kills else None)
        aim = moment.aim if moment.aim in ("a start", "a step", "the model") else f"{moment.aim} of step {moment.step}"
        went_on = "was killed again" if following.resumed is None else f"went on after step {following.resumed}"
        print(f"kill {number + 1}, aimed at {aim}: {killed.killed}; {went_on}", flush=True)
        least = max(least, moment.least_step)
        if following.resumed is not None:
            assert following.resumed >= least, "a whole save was lost"
            least = following.resumed
        hits[killed.is_in_save] += 1
        killed = following
    straight, drilled = (runs.config(name) for name in ("straight", "killed"))
    weights = [
        (run.stage_model(run.stages[0]) / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        for run in (straight, drilled)
    ]
    assert weights[0] == weights[1], "the weights differ"
    steps = [read_steps(run.stage_path(run.stages[0]) / "steps.jsonl") for run in (straight, drilled)]
    assert steps[0] == steps[1], "losses or samples differ"
    assert len(steps[0]) == 2 * moments[-1].step
    print(
        f"{num_kills} kills, {hits[True]} of them in a save: the weights and the {len(steps[0])} steps of"
        " steps.jsonl are those of the run that was not killed, to the bit"
    )
    assert 3 * hits[True] >= num_kills, "too few kills hit a save"


def main() -> None:
    """Run the drill on a model of random weights and simulated images."""
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/drill"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    drill(prepare_run(arguments.out.resolve()), arguments.out.resolve(), arguments.kills, arguments.seed)


if __name__ == "__main__":
    main()
