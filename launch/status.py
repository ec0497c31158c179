"""How far a run is, from what lies in its folder: only reads, takes no lock, and needs no torch."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from distributed.checkpoint import named_checkpoint
from launch.config import RunConfig, load_config
from launch.errors import ConfigError
from launch.job import Job, announced_jobs, read_job
from launch.lock import Holder, lock_holder
from launch.slurm_queue import RUNNING_STATES, WAITING_STATES, QueuedJob, SlurmQueue
from launch.stage_config import StageConfig
from launch.step_log import STEPS_FILE, TIMES_FILE, VALIDATION_FILE, newest_steps
from models.record import read_record

# The loss of a step depends on its timesteps: of so many it is a figure to compare.
NUM_SMOOTHED = 50
# Steps that the pace is taken from: enough to hold validations, previews and saves in their share.
NUM_PACED = 1000
# On another machine without SLURM: a step so long ago, or so many steps' time, means that nobody trains any more. A
# validation of all databases may lie between two steps.
SILENT_S, SILENT_STEPS = 300.0, 20

# Of a run that has been through many: so many of the latest jobs are asked for.
NUM_ASKED = 50

# preparing: a job makes its shards, or has just begun. queued: SLURM will start a job (again). waiting: for the stages
# before it.
State = Literal["done", "training", "preparing", "queued", "stopped", "waiting"]


@dataclass(frozen=True)
class StageStatus:
    """One stage. None: not known yet."""

    name: str
    state: State
    step: int
    num_steps: int | None
    has_ended_early: bool
    loss: float | None  # mean over the newest steps
    validation_loss: float | None
    samples_per_s: float | None  # median of the newest steps, validations and saves left out
    pace_s: float | None  # seconds a step, with validations and saves
    last_time: float | None  # of the newest step, Unix seconds
    checkpoint_step: int | None
    checkpoint_time: float | None  # Unix seconds

    @property
    def steps_left(self) -> int | None:
        """Steps to go; None while nobody knows how many there are."""
        if self.state == "done":
            return 0
        return None if self.num_steps is None else max(0, self.num_steps - self.step)


@dataclass(frozen=True)
class OtherJob:
    """A job of SLURM that is not over and does not train, as far as its run knows: it waits, or encodes."""

    number: str
    name: str
    queued: QueuedJob


@dataclass(frozen=True)
class RunStatus:
    """A run: its stages, and who trains it. time: when this was looked up, Unix seconds.

    queued: the SLURM job of `job` as squeue has it; None where that has forgotten it, or there is none.
    others: the run's other jobs, in the order of their numbers.
    """

    run: Path
    time: float
    stages: tuple[StageStatus, ...]
    holder: Holder | None
    job: Job | None
    queued: QueuedJob | None
    others: tuple[OtherJob, ...]
    is_queue_there: bool

    @property
    def current(self) -> StageStatus | None:
        """The first stage that is not done; None where all are, or nothing is known of them yet."""
        return next((stage for stage in self.stages if stage.state != "done"), None)

    @property
    def state(self) -> State:
        """The state of the current stage."""
        if not self.stages:  # it has a lock or a job, and no configuration yet
            return "training" if self.holder and self.holder.is_there is not False else _state_by_others(self.others)
        return self.current.state if self.current else "done"

    def left_s(self, stage: StageStatus) -> float | None:
        """Return the seconds of training to the end of a stage; None while they cannot be told.

        Those of a stage that has not begun are at the pace of the current one, which may be another kind of stage.
        """
        pace_s = stage.pace_s or (self.current.pace_s if self.current else None)
        if stage.steps_left == 0:
            return 0.0
        return None if stage.steps_left is None or pace_s is None else stage.steps_left * pace_s

    @property
    def run_left_s(self) -> float | None:
        """Seconds of training to the end of the run; None while they cannot be told."""
        left = [self.left_s(stage) for stage in self.stages]
        known = [seconds for seconds in left if seconds is not None]
        return sum(known) if left and len(known) == len(left) else None


def read_statuses(runs: Sequence[Path], queue: SlurmQueue) -> list[RunStatus]:
    """Return how far each run is.

    Raises: ConfigError if one of them is no run's folder.
    """
    configs = [_read_config(run) for run in runs]
    jobs = [read_job(run) for run in runs]
    names = [
        {} if config and all(config.is_finished(stage) for stage in config.stages) else _job_names(run, job)
        for run, config, job in zip(runs, configs, jobs, strict=True)
    ]
    known = queue.jobs({number for of_run in names for number in of_run})
    return [
        _read_status(run, config, job, of_run, known)
        for run, config, job, of_run in zip(runs, configs, jobs, names, strict=True)
    ]


def _job_names(run: Path, job: Job | None) -> dict[str, str]:
    """Return the names of the run's jobs by SLURM's number: of the one that trains or trained last, and the latest."""
    names = dict(islice(announced_jobs(run).items(), NUM_ASKED))
    return {job.slurm.id: "", **names} if job and job.slurm else names


def _read_config(run: Path) -> RunConfig | None:
    """Return a run's configuration; None where training is about to write it."""
    if not run.is_dir():
        found = "is a file" if run.exists() else "does not exist"
        raise ConfigError(f"{run} {found}: give the folder of a run, which its configuration names as `run`")
    if (run / "config.yaml").is_file():
        return load_config(run / "config.yaml").model_copy(update={"run": run})
    if lock_holder(run) is None and not announced_jobs(run):
        raise ConfigError(
            f"{run} has no config.yaml, which training leaves there: give the folder of a run that `sonoshard train`"
            " has begun"
        )
    return None


def _read_status(
    run: Path,
    config: RunConfig | None,
    job: Job | None,
    names: Mapping[str, str],
    known: Mapping[str, QueuedJob] | None,
) -> RunStatus:
    now, holder, own = time.time(), lock_holder(run), job.slurm.id if job and job.slurm else ""
    queued = (known or {}).get(own)
    others = tuple(
        OtherJob(number, names[number], found)
        for number in sorted(names, key=int)
        if number != own and (found := (known or {}).get(number)) and found.state in RUNNING_STATES | WAITING_STATES
    )
    stages = [_read_stage(config, stage, job) for stage in config.stages] if config else []
    for number, stage in enumerate(stages):
        if stage.state != "done":
            state = _state(stage, _life_sign(stage, job), holder, queued, others, now)
            has_begun = stage.step > 0 or (job is not None and job.stage == stage.name)
            stages[number] = replace(stage, state="waiting" if state == "stopped" and not has_begun else state)
            break
    return RunStatus(run, now, tuple(stages), holder, job, queued, others, known is not None)


def _life_sign(stage: StageStatus, job: Job | None) -> float:
    """Return when a stage's training last told of itself, Unix seconds."""
    return max(stage.last_time or 0.0, job.started if job and job.stage == stage.name else 0.0)


def _state(
    stage: StageStatus,
    life_sign: float,
    holder: Holder | None,
    queued: QueuedJob | None,
    others: Sequence[OtherJob],
    now: float,
) -> State:
    """Return the state of the first stage that is not done."""
    if holder and holder.is_there:
        return "training"
    if queued and queued.state in WAITING_STATES:
        return "queued"
    if holder is None or holder.is_there is False:
        return _state_by_others(others)
    if queued:
        return "training" if queued.state in RUNNING_STATES else _state_by_others(others)
    silent_s = max(SILENT_S, SILENT_STEPS * (stage.pace_s or 0.0))
    return "training" if now - life_sign < silent_s else _state_by_others(others)


def _state_by_others(others: Sequence[OtherJob]) -> State:
    """Return the state of a run that nobody trains now."""
    if any(other.queued.state in RUNNING_STATES for other in others):
        return "preparing"
    return "queued" if others else "stopped"


def _read_stage(config: RunConfig, stage: StageConfig, job: Job | None) -> StageStatus:
    """Return what a stage's folder tells; its state is `done` or `waiting`."""
    folder = config.stage_path(stage)
    steps, times, validations = (newest_steps(folder / name) for name in (STEPS_FILE, TIMES_FILE, VALIDATION_FILE))
    record = read_record(config.stage_model(stage)) if config.is_finished(stage) else None
    num_steps = stage.steps or (job.stage_steps.get(stage.name) if job else None)
    step = record["steps"] if record else steps[-1]["step"] if steps else 0
    losses = [entry["loss"] for entry in steps[-NUM_SMOOTHED:] if entry.get("loss") is not None]
    rates = [entry["samples_per_s"] for entry in times[-NUM_SMOOTHED:]]
    last_loss = validations[-1]["mean"] if validations else None
    checkpoint_step, checkpoint_time = _newest_checkpoint(config.stage_checkpoints(stage))
    return StageStatus(
        name=stage.name,
        state="done" if record else "waiting",
        step=step,
        num_steps=num_steps,
        has_ended_early=record is not None and bool(record.get("early_stop")) and step < (num_steps or 0),
        loss=statistics.fmean(losses) if losses else None,
        # Of an early stop it is that of the model which was kept.
        validation_loss=(record or {}).get("validation_loss") or last_loss,
        samples_per_s=statistics.median(rates) if rates else None,
        pace_s=_pace_s(times, job.started if job and job.stage == stage.name else None),
        last_time=times[-1]["time"] if times else None,
        checkpoint_step=checkpoint_step,
        checkpoint_time=checkpoint_time,
    )


def _pace_s(times: Sequence[dict[str, Any]], started: float | None) -> float | None:
    """Return the seconds a step of the process that trains, or trained last, since `started`; None before its second.

    Before that, the usual time between two steps of the processes before it.
    """
    own = [entry for entry in times[-NUM_PACED:] if started is None or entry["time"] >= started]
    if started is not None and len(own) > 1:
        return float(own[-1]["time"] - own[0]["time"]) / (len(own) - 1)
    between = [after["time"] - before["time"] for before, after in pairwise(times[-NUM_PACED:])]
    return statistics.median(between) if between else None


def _newest_checkpoint(root: Path) -> tuple[int | None, float | None]:
    """Return the step of the checkpoint that LATEST names, and when it was complete, in Unix seconds."""
    folder = named_checkpoint(root, "LATEST")
    if folder is None:
        return None, None
    try:
        return int(folder.name.removeprefix("step-")), (folder / "manifest.json").stat().st_mtime
    except (FileNotFoundError, ValueError):  # it was replaced just now
        return None, None
