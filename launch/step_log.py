"""The logs in a stage's folder: one JSON object a line, each with the `step` that it is of."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

# One object per step: step, loss, learning rate, gradient norm and the ids of the samples. A skipped step also has
# `bad_ids`, the samples whose own loss was not finite.
STEPS_FILE = "steps.jsonl"
# One object per step: step, `time` (Unix seconds at its end) and samples_per_s. Apart from steps.jsonl, which is the
# same to the bit in a run that was killed.
TIMES_FILE = "times.jsonl"
# One object per validation: step (0: the model that the stage starts from), losses by database, and their mean over the
# databases that the stage is for.
VALIDATION_FILE = "validation.jsonl"
# What `newest_steps` looks at: thousands of steps, or some tens with the ids of hundreds of samples each.
NEWEST_BYTES = 2**20


class StepLog:
    """A log to append to."""

    def __init__(self, path: Path, done_steps: int, known: Collection[int] | None = None) -> None:
        """Open the log to go on after `done_steps`; what lies beyond, of a run that was killed, is taken out.

        known: the steps that have an entry, where not all have: one that is made again is not to stand there twice.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        # A stage without a step done begins anew, with step 0.
        is_kept = done_steps > 0 and path.exists()
        kept = [entry for entry in read_steps(path) if entry["step"] <= done_steps] if is_kept else []
        if known is not None:
            kept = [entry for entry in kept if entry["step"] in known]
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
    return _parsed(path.read_text(encoding="utf-8").splitlines())


def newest_steps(path: Path) -> list[dict[str, Any]]:
    """Return the last objects of a log, from its last MiB: at once, however long it is; none where there is no log."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - NEWEST_BYTES)
            file.seek(start)
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    return _parsed(lines[1:] if start else lines)  # the first one is likely half of one


def _parsed(lines: Iterable[str | bytes]) -> list[dict[str, Any]]:
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:  # not JSON, or a character cut in two
            break
    return entries
