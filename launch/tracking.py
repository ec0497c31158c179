"""What a run tells: TensorBoard, steps.jsonl and validation.jsonl, and a progress bar on the first rank."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from launch.config import RunConfig, StageConfig
from launch.progress import Progress

T = TypeVar("T")


# In a stage's folder, one object a step: step, loss, learning rate, gradient norm and the ids of the samples. A skipped
# step also has `bad_ids`, the samples whose own loss was not finite.
STEPS_FILE = "steps.jsonl"
# One object a validation: step (0: the model that the stage starts from), losses by database, and their mean over the
# databases that the stage is for.
VALIDATION_FILE = "validation.jsonl"


class StepLog:
    """One JSON object a line, each with the `step` that it is of."""

    def __init__(self, path: Path, done_steps: int) -> None:
        """Open the log to go on after `done_steps`; what lies beyond, of a run that was killed, is taken out."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # A stage without a step done begins anew, with step 0.
        is_kept = done_steps > 0 and path.exists()
        kept = [entry for entry in read_steps(path) if entry["step"] <= done_steps] if is_kept else []
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        temporary.rename(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one object."""
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log; a last line that was cut off by a kill is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


class Tracker:
    """Everything that the first rank shows of one stage."""

    def __init__(self, config: RunConfig, stage: StageConfig, num_steps: int, done_steps: int) -> None:
        """Open the logs of a stage of `num_steps` to go on after `done_steps`."""
        # A stage is a "run" of TensorBoard; what a killed process wrote beyond its checkpoint is hidden from there on.
        folder = config.run / "tensorboard" / stage.name
        self._writer = SummaryWriter(str(folder), purge_step=done_steps + 1 if done_steps else 0)
        self._steps, self._validations = (
            StepLog(config.stage_path(stage) / name, done_steps) for name in (STEPS_FILE, VALIDATION_FILE)
        )
        self._progress = Progress(stage.name, "step", num_steps, done_steps)

    def begin(self, config_text: str, resumed: str | None) -> None:
        """Show the resolved configuration, and what the stage goes on from."""
        self._writer.add_text("config", f"```yaml\n{config_text}\n```", 0)
        if resumed:
            self.say(resumed)

    def step(
        self, step: int, scalars: Mapping[str, float], ids: Sequence[str], bad_ids: Sequence[str] | None = None
    ) -> None:
        """Record step `step` (counted from 1), and the samples that it saw.

        bad_ids: of a skipped step, those whose loss was not finite. None: the step was taken.
        """
        self.scalars(step, scalars)
        figures = {tag.removeprefix("train/"): value for tag, value in scalars.items() if tag.startswith("train/")}
        skipped = {} if bad_ids is None else {"bad_ids": list(bad_ids)}
        self._steps.write({"step": step, **_or_null(figures), "ids": list(ids), **skipped})
        note = f"loss {scalars['train/loss']:.4f}, {scalars['throughput/samples_per_s']:.1f} samples/s"
        self._progress.show(step, note)

    def validation(self, step: int, losses: Mapping[str, float], mean: float) -> None:
        """Record the loss after `step` steps on each database, and their mean over those that the stage is for."""
        self.scalars(step, {"validation/loss": mean, **{f"validation/{name}": loss for name, loss in losses.items()}})
        self._validations.write({"step": step, "losses": _or_null(losses), **_or_null({"mean": mean})})

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record figures by their tags."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)

    def images(self, step: int, captioned: Mapping[str, NDArray[np.uint8]]) -> None:
        """Record images, [H, W, 3], by what they were drawn for."""
        for caption, image in captioned.items():
            self._writer.add_image(f"preview/{caption}", image, step, dataformats="HWC")

    def say(self, message: str) -> None:
        """Print a line without tearing the bar."""
        self._progress.say(message)

    def close(self) -> None:
        """Flush and close everything."""
        self._progress.close()
        self._steps.close()
        self._validations.close()
        self._writer.close()


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
