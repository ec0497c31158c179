"""The checkpoints of one stage: found and loaded when it begins, written as it goes on."""

from collections.abc import Mapping
from typing import Any

from distributed.checkpoint import Found, find_checkpoint, lowest_checkpoint, restore_older
from distributed.checkpoint_state import load_checkpoint
from distributed.checkpoint_writer import CheckpointWriter
from distributed.ema import SlicedEma
from distributed.engine import Engine
from distributed.rank import from_first_rank
from distributed.stop_request import StopRequest
from launch.config import RunConfig
from launch.facts import refuse_other_facts
from launch.stage_config import StageConfig
from launch.stage_progress import StageProgress


class StageCheckpoints:
    """Loads and saves the engine and the averages of a stage. Every method but `has` is collective.

    What a run would go on from is told to `stop` whenever that changes.
    """

    def __init__(
        self,
        config: RunConfig,
        stage: StageConfig,
        facts: Mapping[str, Any],
        engine: Engine,
        ema: SlicedEma,
        stop: StopRequest,
    ) -> None:
        """Nothing is loaded yet. facts: what the stage's position depends on, see `stage_facts`."""
        self.folder = config.stage_checkpoints(stage)
        self._stage_name, self._global_size = stage.name, config.batch.global_size
        self._facts, self._engine, self._ema, self._stop = facts, engine, ema, stop
        self._writer = CheckpointWriter(self.folder, engine, config.checkpoint)
        # The position of what was saved or loaded last.
        self._saved = StageProgress().position
        self._tell_newest(0)

    @property
    def saved_step(self) -> int:
        """The step of what was saved or loaded last; 0 where nothing was."""
        return int(self._saved["step"])

    def load_newest(self) -> Found | None:
        """Load the newest whole checkpoint and return it; None where there is none.

        Raises: ConfigError if it is of other facts; CheckpointError if there are some and none can be gone on from.
        """
        found = from_first_rank(self._engine.rank, self._find)
        if found is None:
            return None
        refuse_other_facts(found.position["facts"], self._facts, found.folder)
        self.load(found)
        self._saved = StageProgress.of(found.position).position
        self._writer.damaged.update(found.damaged)
        self._tell_newest(self.saved_step)
        return found

    def lowest(self, last_step: int) -> Found | None:
        """Return the checkpoint up to `last_step` of the lowest validation loss; None where no loss is finite."""
        return from_first_rank(self._engine.rank, lambda: lowest_checkpoint(self.folder, last_step))

    def load(self, found: Found) -> None:
        """Load a checkpoint into engine and averages."""
        load_checkpoint(found, self._engine, self._ema.slices)

    def has(self, progress: StageProgress) -> bool:
        """Return whether what `progress` keeps was saved, or needs no checkpoint, as no step was good."""
        return progress.last_good_step == 0 or progress.position == self._saved

    def save(self, progress: StageProgress) -> None:
        """Write a checkpoint of the state after the last good step, at once or while training goes on."""
        position = progress.position
        samples = position["step"] * self._global_size
        self._writer.save(self._ema.slices, {**position, "samples": samples, "facts": self._facts})
        self._saved = position
        self._tell_written()

    def poll(self) -> None:
        """Name the checkpoint that is on its way, if it is written; else return at once."""
        self._writer.poll()
        self._tell_written()

    def finish(self) -> None:
        """Wait for the checkpoint that is on its way, if there is one."""
        self._writer.finish()
        self._tell_written()

    def _find(self) -> Found | None:
        restore_older(self.folder)
        return find_checkpoint(self.folder)

    def _tell_written(self) -> None:
        if self._writer.newest_step is not None:
            self._tell_newest(self._writer.newest_step)

    def _tell_newest(self, step: int) -> None:
        newest = f"the newest checkpoint is of step {step}" if step else "there is no checkpoint yet"
        self._stop.newest_save = f"stage {self._stage_name}: {newest}"
