"""`sonoshard status`: a table for one run, a line each for several, redrawn while somebody watches."""

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.slurm_queue import QueuedJob, SlurmQueue
from launch.status import RunStatus, StageStatus, read_statuses

SECONDS_BETWEEN_LOOKS = 5.0
_STYLES = {"done": "green", "training": "bold cyan", "preparing": "cyan"}
_STYLES |= {"queued": "yellow", "stopped": "red", "waiting": "dim"}
_UNKNOWN = "-"
# More jobs than these of one run are counted only.
NUM_OTHERS = 6
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def print_status(runs: Sequence[Path], *, watch: bool = False) -> None:
    """Print how far each run is; with `watch`, again every few seconds until Ctrl-C.

    Raises: ConfigError if one of them is no run's folder.
    """
    console, queue = Console(highlight=False), SlurmQueue()
    if not watch:
        console.print(drawn(read_statuses(runs, queue)))
        return
    try:
        if not console.is_terminal:  # a file, or a notebook: one picture after another
            while True:
                console.print(drawn(read_statuses(runs, queue)))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                live.update(drawn(read_statuses(runs, queue)), refresh=True)
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        return


def drawn(statuses: Sequence[RunStatus]) -> RenderableType:
    """Return one run's stages as a table, or several runs as a line each."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(statuses[0].time))
    if len(statuses) > 1:
        return Group(Text(at, style="dim"), _table_of_runs(statuses))
    (status,) = statuses
    title = Text.assemble(str(status.run), "  ", (status.state, _STYLES[status.state]))
    if status.stages and status.state != "done":
        left = status.run_left_s
        title.append(f"  {'time left not known yet' if left is None else f'{duration(left)} of training left'}")
    title.append(f"  {at}", style="dim")
    lines = [Text(line) for line in about_trainer(status)]
    return Group(title, *([_table_of_stages(status)] if status.stages else []), *lines)


def _table_of_stages(status: RunStatus) -> Table:
    table = _table("stage", "state", "step", "loss", "valid.\nloss", "samples\n/s", "time\nleft", "checkpoint\n(age)")
    for stage in status.stages:
        state = "done early" if stage.has_ended_early else stage.state
        left = _UNKNOWN if stage.state == "done" else duration(status.left_s(stage))
        table.add_row(stage.name, Text(state, style=_STYLES[stage.state]), *_figures(stage), left, _kept(stage, status))
    return table


def _table_of_runs(statuses: Sequence[RunStatus]) -> Table:
    # Without the validation loss, for which a line of 80 columns has no room.
    table = _table("run", "state", "stage", "step", "loss", "samples\n/s", "time\nleft", "checkpoint\n(age)")
    for status in statuses:
        state = Text(status.state, style=_STYLES[status.state])
        if not status.stages:
            table.add_row(str(status.run), state, *[_UNKNOWN] * 6)
            continue
        stage = status.current or status.stages[-1]
        number = f"{status.stages.index(stage) + 1}/{len(status.stages)} {stage.name}"
        left = _UNKNOWN if status.state == "done" else duration(status.run_left_s)
        step, loss, _, rate = _figures(stage)
        table.add_row(str(status.run), state, number, step, loss, rate, left, _kept(stage, status))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        # A narrow terminal breaks names, and no figure.
        is_name = column in ("run", "stage")
        justify: Literal["left", "right"] = "left" if is_name or column == "state" else "right"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=not is_name)
    return table


def _figures(stage: StageStatus) -> list[str]:
    """Return step, loss, validation loss and samples/s."""
    figures = [_number(stage.loss, ".4f"), _number(stage.validation_loss, ".4f"), _number(stage.samples_per_s, ".1f")]
    return [f"{stage.step}/{'?' if stage.num_steps is None else stage.num_steps}", *figures]


def _kept(stage: StageStatus, status: RunStatus) -> str:
    if stage.checkpoint_step is None or stage.checkpoint_time is None:
        return _UNKNOWN
    return f"{stage.checkpoint_step} ({_age(status.time - stage.checkpoint_time)})"


def _number(value: float | None, spec: str) -> str:
    return _UNKNOWN if value is None else format(value, spec)


def duration(seconds: float | None) -> str:
    """Return a span of time by its two largest units; `-` where it is not known."""
    if seconds is None:
        return _UNKNOWN
    whole = max(0, round(seconds))
    for (size, unit), (part_size, part) in pairwise(_UNITS):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part_size:02d}{part}"
    return f"{whole}s"


def _age(seconds: float) -> str:
    """Return a span of time by its largest unit alone."""
    whole = max(0, int(seconds))
    return next((f"{whole // size}{unit}" for size, unit in _UNITS if whole >= size), "0s")


def about_trainer(status: RunStatus) -> list[str]:
    """Return who trains the run, or did, in lines; none where that is over and done."""
    if status.state == "done":
        return []
    about_others = [_about_queued(other.queued, f"SLURM job {other.number} ({other.name})") for other in status.others]
    if len(about_others) > NUM_OTHERS:
        about_others[NUM_OTHERS:] = [f"and {len(about_others) - NUM_OTHERS} more jobs"]
    about = [_about_process(status), _about_job(status), *about_others, _about_last_step(status)]
    return [line for line in about if line]


def _about_process(status: RunStatus) -> str | None:
    holder, job = status.holder, status.job
    if holder is None:
        return "nobody has trained here" if job is None else None
    who = f"process {holder.process} on {holder.host}"
    if job is None or (job.process, job.host) != (holder.process, holder.host):
        about_to = f"{who} is about to train: it reads the shards and the model"
        return about_to if holder.is_there else f"last trained by {who}"
    who += f", {job.world_size} rank{'s' if job.world_size > 1 else ''}"
    if status.state != "training":
        return f"last trained by {who}"
    seen = "" if holder.is_there else " (another machine: not seen from here)"
    return f"trained by {who}, for {duration(status.time - job.started)}{seen}"


def _about_job(status: RunStatus) -> str | None:
    job = status.job.slurm if status.job else None
    if job is None:
        return None
    name = f"SLURM job {job.id}" + (f" ({job.array})" if job.array else "")
    restarts = f", requeued {job.num_restarts} time{'s' if job.num_restarts != 1 else ''} so far"
    restarts = restarts if job.num_restarts else ""
    if not status.is_queue_there:
        return f"{name}{restarts}: squeue gives no answer here"
    if (queued := status.queued) is None:
        return f"{name}{restarts}: SLURM does not know it any more"
    return _about_queued(queued, name, job.nodes) + restarts


def _about_queued(queued: QueuedJob, name: str, nodes: str | None = None) -> str:
    if queued.state in ("RUNNING", "COMPLETING"):
        return f"{name}{f' on {nodes}' if nodes else ''}: {queued.state}, {queued.left} left of {queued.limit}"
    reason = f" ({queued.reason})" if queued.reason not in ("", "None") else ""
    start = queued.start if queued.start not in ("", "N/A") else "not known"
    expected = f", expected start {start}" if queued.state == "PENDING" else ""
    return f"{name}: {queued.state}{reason}{expected}"


def _about_last_step(status: RunStatus) -> str | None:
    stage = status.current
    if stage is None or stage.last_time is None:
        return None
    return f"last step {duration(status.time - stage.last_time)} ago"
