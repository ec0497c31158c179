"""What a run tells: TensorBoard, the logs in a stage's folder, and a progress bar on the first rank."""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from launch.config import RunConfig
from launch.progress import Progress
from launch.run_steps import steps_before
from launch.stage_config import StageConfig
from launch.step_log import STEPS_FILE, TIMES_FILE, VALIDATION_FILE, StepLog

T = TypeVar("T")


class Tracker:
    """Everything that the first rank shows of one stage."""

    def __init__(
        self,
        config: RunConfig,
        stage: StageConfig,
        num_steps: int,
        done_steps: int,
        validated: Collection[int] | None = None,
    ) -> None:
        """Open the logs of a stage of `num_steps` to go on after `done_steps`.

        validated: at which of these it was, as the checkpoint says; None: as the log does.
        """
        # The stages follow one another on one axis, since the whole curriculum is one "run" of TensorBoard. What a
        # killed process wrote beyond its checkpoint is hidden from there on, and with it what an earlier start of this
        # run wrote of the stages after this one.
        self._offset = steps_before(config, stage)
        self._number, self._name = config.stages.index(stage) + 1, stage.name
        self._first_step = 0 if self._offset == done_steps == 0 else self._offset + done_steps + 1
        self._writer = SummaryWriter(str(tensorboard_folder(config)), purge_step=self._first_step)
        folder = config.stage_path(stage)
        self._steps, self._times = (StepLog(folder / name, done_steps) for name in (STEPS_FILE, TIMES_FILE))
        self._validations = StepLog(folder / VALIDATION_FILE, done_steps, validated)
        self._progress = Progress(stage.name, "step", num_steps, done_steps)

    def begin(self, config_text: str) -> None:
        """Show the resolved configuration."""
        self._writer.add_text("config", f"```yaml\n{config_text}\n```", self._first_step)

    def step(
        self, step: int, scalars: Mapping[str, float], ids: Sequence[str], bad_ids: Sequence[str] | None = None
    ) -> None:
        """Record step `step` of the stage (counted from 1), and the samples that it saw.

        bad_ids: of a skipped step, those whose loss was not finite. None: the step was taken.
        """
        # At every step, since nobody knows which one is the last before a kill or an early stop.
        self.scalars(step, {**scalars, "stage": self._number})
        if step == 1:
            self._writer.add_text("stage", self._name, self._offset + step)
        figures = {tag.removeprefix("train/"): value for tag, value in scalars.items() if tag.startswith("train/")}
        skipped = {} if bad_ids is None else {"bad_ids": list(bad_ids)}
        self._steps.write({"step": step, **_or_null(figures), "ids": list(ids), **skipped})
        samples_per_s = scalars["throughput/samples_per_s"]
        self._times.write({"step": step, "time": round(time.time(), 3), "samples_per_s": round(samples_per_s, 4)})
        self._progress.show(step, f"loss {scalars['train/loss']:.4f}, {samples_per_s:.1f} samples/s")

    def validation(self, step: int, losses: Mapping[str, float], mean: float) -> None:
        """Record the loss after `step` steps on each database, and their mean over those that the stage is for."""
        self.scalars(step, {"validation/loss": mean, **{f"validation/{name}": loss for name, loss in losses.items()}})
        self._validations.write({"step": step, "losses": _or_null(losses), **_or_null({"mean": mean})})

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record figures by their tags."""
        for tag, value in scalars.items():
            name, at = self._place(tag, step)
            self._writer.add_scalar(name, value, at)

    def images(self, step: int, captioned: Mapping[str, NDArray[np.uint8]]) -> None:
        """Record images, [H, W, 3], by what they were drawn for."""
        for caption, image in captioned.items():
            name, at = self._place(f"preview/{caption}", step)
            self._writer.add_image(name, image, at, dataformats="HWC")

    def _place(self, tag: str, step: int) -> tuple[str, int]:
        """Return the tag and the step of the run under which a figure of a step of the stage is shown."""
        if step == 0 and self._offset > 0:
            # The step that the stage before ended with has its point in this curve: what this stage starts from, the
            # same model or another one, gets a tag of its own, and a step that a new start of the stage purges.
            return f"start/{tag}", self._offset + 1
        return tag, self._offset + step

    def say(self, message: str) -> None:
        """Print a line without tearing the bar."""
        self._progress.say(message)

    def close(self) -> None:
        """Flush and close everything."""
        self._progress.close()
        self._steps.close()
        self._times.close()
        self._validations.close()
        self._writer.close()


def tensorboard_folder(config: RunConfig) -> Path:
    """Return where the curves of a run lie."""
    return config.run / "tensorboard"


def _or_null(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Return figures for JSON, which knows no infinity: one that is not finite is null."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap_s(self) -> float:
        """Return the seconds since the last call and begin anew."""
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        return elapsed


class TimedIterator(Iterator[T]):
    """Passes an iterator's items on and adds up the seconds that were spent waiting for them."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._waited_s = 0.0

    def __next__(self) -> T:
        """Return the next item."""
        watch = Stopwatch()
        item = next(self._items)
        self._waited_s += watch.lap_s()
        return item

    def lap_s(self) -> float:
        """Return the seconds waited since the last call and begin anew."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited
