"""What a run tells: TensorBoard, a line a step in steps.jsonl, and a progress bar on the first rank."""

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


class StepLog:
    """One JSON object a step: step, loss, learning rate, gradient norm and the ids of the samples.

    A skipped step also has `bad_ids`, the samples whose own loss was not finite.
    """

    def __init__(self, path: Path, done_steps: int) -> None:
        """Open the log to go on after `done_steps`; steps beyond it, of a run that was killed, are taken out."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [entry for entry in read_steps(path) if entry["step"] <= done_steps] if path.exists() else []
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        temporary.rename(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one step."""
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the steps of a log; a last line that was cut off by a kill is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


class Tracker:
    """Everything that the first rank shows of one stage."""

    def __init__(self, config: RunConfig, stage: StageConfig, done_steps: int) -> None:
        """Open the stage's logs to go on after `done_steps`."""
        # A stage is a "run" of TensorBoard; what a killed process wrote beyond its checkpoint is hidden from there on.
        folder = config.run / "tensorboard" / stage.name
        self._writer = SummaryWriter(str(folder), purge_step=done_steps + 1 if done_steps else 0)
        self._log = StepLog(config.stage_path(stage) / "steps.jsonl", done_steps)
        self._progress = Progress(stage.name, "step", stage.steps, done_steps)

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
        # JSON knows no infinity: a gradient that is not finite is null.
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        skipped = {} if bad_ids is None else {"bad_ids": list(bad_ids)}
        self._log.write({"step": step, **finite, "ids": list(ids), **skipped})
        note = f"loss {scalars['train/loss']:.4f}, {scalars['throughput/samples_per_s']:.1f} samples/s"
        self._progress.show(step, note)

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
        self._log.close()
        self._writer.close()


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
