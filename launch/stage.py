"""One stage of a run on one rank: resumes by itself, trains, validates, shows, saves, stops when asked."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from data.loader import BatchSlicing, Loader
from data.shards import ShardSet
from distributed.ema import SlicedEma, average_length
from distributed.engine import Engine
from distributed.memory import measured_bytes
from distributed.optimizer import learning_rate
from distributed.placement import training_device, training_dtype
from distributed.rank import Rank, raise_together
from distributed.stop_request import StoppedOnRequest, StopRequest
from launch.activations import measured_activation_bytes
from launch.config import RunConfig
from launch.early_stop import is_over, lowest_step
from launch.facts import stage_order, stage_parts, stage_seed, stage_steps
from launch.lineage import files_of_lineage
from launch.memory import compared, listed_mb, predict
from launch.networks import Networks
from launch.preview import Preview, subjects_of
from launch.record import config_text, model_record
from launch.stage_checkpoints import StageCheckpoints
from launch.stage_config import StageConfig
from launch.stage_progress import StageProgress
from launch.step import Objective, TrainedStep, mean_loss, train_step
from launch.tracking import Stopwatch, TimedIterator, Tracker
from launch.training_data import training_until
from launch.validation import HeldOut
from models.base import noise_schedule
from models.saving import save_pipeline
from models.trained_part import lora_files, whole_weights

# Of a long list of samples a message names so many; all of them stand in steps.jsonl.
MAX_NAMED_SAMPLES = 8


class Stage:
    """Training of one stage. Everything here is collective: every rank does it at the same step."""

    def __init__(
        self,
        config: RunConfig,
        stage: StageConfig,
        shards: ShardSet,
        facts: Mapping[str, Any],
        rank: Rank,
        stop: StopRequest,
    ) -> None:
        """Set up the engine and load the newest checkpoint. config.model is what this stage starts from."""
        self.config, self.stage, self.shards = config, stage, shards
        self.facts, self.rank, self.stop = facts, rank, stop
        self.slicing = BatchSlicing(config.batch.global_size, config.batch.micro_size, rank.index, rank.world_size)
        self.num_steps = stage_steps(config, stage, shards)
        order = stage_order(config, stage, shards)
        parts = stage_parts(config, stage, shards)
        self.loader = Loader(
            shards,
            order,
            self.slicing,
            config.stage_augment(stage),
            stage_seed(config, stage),
            parts,
            with_hints=stage.has_hints,
        )
        networks = Networks.load(config, stage, training_dtype(config.precision), training_device(rank))
        self.activation_bytes = measured_activation_bytes(config, networks)
        self.frozen_bytes = networks.frozen_bytes
        self.engine = Engine(
            networks.trained,
            config.optimizer,
            config.zero,
            rank,
            precision=config.precision,
            micro_size=config.batch.micro_size,
            accumulation_steps=self.slicing.accumulation_steps,
        )
        self.denoiser = networks.denoiser(self.engine.network)
        self.ema = SlicedEma([group.master for group in self.engine.groups], config.ema.lengths)
        schedule = noise_schedule(config.model)
        self.objective = Objective(schedule, config.stage_objective(stage), self.engine.device)
        self.held_out = HeldOut(config, schedule, shards, self.slicing, self.engine.device, with_hints=stage.has_hints)
        subjects = subjects_of(config, stage, shards)
        self.preview = Preview(config, schedule, shards, self.engine, self.denoiser, subjects)
        self.checkpoints = StageCheckpoints(config, stage, facts, self.engine, self.ema, stop)
        found = self.checkpoints.load_newest()
        self.progress = StageProgress.of(found.position) if found else StageProgress()
        self.has_as_many_ranks_as_before = found is not None and found.manifest["world_size"] == rank.world_size
        self.has_stepped = self.is_memory_told = False
        self.tracker: Tracker | None = None
        if rank.is_first:
            validated = self.progress.validation_losses.keys()
            self.tracker = Tracker(config, stage, self.num_steps, self.step, validated)
            self.tracker.begin(config_text(config))
        if found:
            skipped = [f"skipped: {line}" for line in found.skipped]
            self._say("\n".join([*skipped, f"resumed after step {self.step}"]))

    @property
    def step(self) -> int:
        """The last step, taken or skipped."""
        return self.progress.step

    def train(self, *, is_first: bool = True) -> None:
        """Train to the last step and leave the final model.

        is_first: of the stages that this process trains. Raises: StoppedOnRequest once a checkpoint is saved after a
        signal; in a later stage also before its first step, when there is nothing to save. In the first one a step is
        taken first: a job whose time is always up when it has just begun gets on all the same. RuntimeError if too many
        steps in a row were bad, or the last weights give no finite loss.
        """
        if self.step == 0:  # what the base model does, to compare with
            self._validate()
            self._show_preview()
            if not is_first and self.stop.is_agreed(self.engine.device):
                self._say("stopped on request before its first step; run the same command again to go on")
                raise StoppedOnRequest
        elif not self.progress.is_looked_at:  # as it was stopped before
            self._look()
            self._save()
        batches = TimedIterator(self.loader.batches(self.step, self.num_steps))
        while not self._is_at_end():
            watch = Stopwatch()
            rate = learning_rate(self.config.optimizer, self.step + 1, self.num_steps)
            trained = train_step(self.engine, self.denoiser, self.objective, batches, rate)
            self.progress.step += 1
            self.has_stepped = True
            if not trained.result.is_skipped:
                self.ema.update(self.engine.num_steps)
            self._record(trained, rate, step_s=watch.lap_s(), wait_s=batches.lap_s())
            self._count_bad_steps(trained)
            self.progress.is_looked_at = not (self._is_validation_due() or self._is_preview_due())
            self._stop_if_asked()
            self._look()
            self._save_where_due()
        self.checkpoints.finish()
        if self.stage.early_stop:
            self._go_back_to_lowest()
        else:
            self._refuse_diverged()
        self._save_model()
        self._say(f"finished, its model is {self.config.stage_model(self.stage)}")

    def close(self) -> None:
        """Flush what was tracked and free the engine."""
        if self.tracker:
            self.tracker.close()
        self.engine.close()

    def _say(self, message: str) -> None:
        if self.tracker:
            self.tracker.say(f"{self.stage.name}: {message}")

    def _is_due(self, every_steps: int | None) -> bool:
        return self.step == self.num_steps or (every_steps is not None and self.step % every_steps == 0)

    def _is_validation_due(self) -> bool:
        return self._is_due(self.config.validation.every_steps)

    def _is_preview_due(self) -> bool:
        return self._is_due(self.config.preview.every_steps)

    def _is_at_end(self) -> bool:
        return self.step >= self.num_steps or is_over(self.progress.validation_losses, self.stage.early_stop)

    def _look(self) -> None:
        """Validate and show previews where it is time to, for minutes perhaps.

        A stop is heard between two batches of the validation and two steps of the previews' sampler. Then it is agreed
        upon once more, with the weights put back that had lent their place to the average.
        """
        # What a start makes up it makes up whole, so that one which is always stopped at once gets on.
        stop = self.stop if self.has_stepped else None
        if self._is_validation_due() and self.step not in self.progress.validation_losses:
            with suppress(StoppedOnRequest):
                self._validate(stop)
            self._stop_if_asked()
        if self._is_preview_due():
            try:
                self._show_preview(stop)
            except StoppedOnRequest:
                self._stop_if_asked()
        self.progress.is_looked_at = True

    def _save_where_due(self) -> None:
        if self._is_due(self.config.checkpoint.save_every_steps) or self._is_lowest():
            self._save()
        else:
            self.checkpoints.poll()

    def _stop_if_asked(self) -> None:
        """Save and raise StoppedOnRequest, if any rank was asked to stop. Collective.

        What is still to be validated and shown at this step is made up when the run goes on: a scheduler that stops a
        job gives it minutes.
        """
        if not self.stop.is_agreed(self.engine.device):
            return
        self._save()
        self.checkpoints.finish()
        lost = "its last steps were bad" if self.progress.num_bad_steps else "which is not kept"
        not_saved = "" if self.checkpoints.saved_step == self.step else f" ({lost}: {self.stop.newest_save})"
        self._say(f"stopped on request after step {self.step}{not_saved}; run the same command again to go on")
        raise StoppedOnRequest

    def _is_lowest(self) -> bool:
        """Return whether the weights are those that a stage with an early stop would leave, as far as it is."""
        return self.stage.early_stop is not None and lowest_step(self.progress.validation_losses) == self.step

    def _go_back_to_lowest(self) -> None:
        """Load the checkpoint of the lowest validation loss, where that is not the last one.

        Where no loss is finite the last weights stay. Raises: RuntimeError if these have diverged.
        """
        found, losses = self.checkpoints.lowest(self.step), self.progress.validation_losses
        for line in found.skipped if found else ():
            self._say(f"skipped: {line}")
        lowest = lowest_step(losses)
        if lowest and (found is None or found.position["validation_loss"] != losses[lowest]):
            self._say(f"the checkpoint of the lowest validation loss, that of step {lowest}, is not there any more")
        if found is None:
            self._save()
            self.checkpoints.finish()
            self._refuse_diverged()
            return
        if found.position["step"] == self.step:
            return
        self.checkpoints.load(found)
        last, self.progress.step = self.step, int(found.position["step"])
        self._say(f"ended after step {last}; the lowest validation loss was that of step {self.step}")

    def _refuse_diverged(self) -> None:
        """Raise RuntimeError if the last weights, which should be saved, were not: they are no model."""
        if self.checkpoints.saved_step != self.progress.last_good_step:
            raise RuntimeError(
                f"{self.stop.newest_save}; the weights after step {self.step} give a loss that is not finite:"
                " lower optimizer.lr"
            )

    def _lent_weights(self, slices: Sequence[Tensor] | None) -> AbstractContextManager[Any]:
        return self.engine.weights_from(slices) if slices else nullcontext()

    def _count_bad_steps(self, trained: TrainedStep) -> None:
        progress = self.progress
        progress.num_bad_steps = progress.num_bad_steps + 1 if trained.result.is_skipped else 0
        if progress.num_bad_steps >= self.config.optimizer.max_bad_steps:
            self._save()
            self.checkpoints.finish()
            mend = "look at these samples, or lower optimizer.lr" if trained.bad_ids else "lower optimizer.lr"
            raise RuntimeError(
                f"{self.stop.newest_save}; the gradient was not finite in {progress.num_bad_steps} steps in a row up to"
                f" step {self.step}, where {self._what_is_bad(trained)}: {mend}"
            )

    def _what_is_bad(self, trained: TrainedStep) -> str:
        if trained.bad_ids:
            return f"the loss is not finite of {listed(trained.bad_ids)}"
        return f"every loss is finite but the gradient is not, of {listed(self.loader.ids(self.step - 1))}"

    def _save(self) -> None:
        """Save the state after the last good step, unless that was done before or the weights have diverged."""
        if self.checkpoints.has(self.progress):
            return
        step = self.progress.last_good_step
        if self._has_diverged(step):
            self._say(f"the weights after step {step} give a loss that is not finite on its own samples: not saved")
            return
        self.checkpoints.save(self.progress)

    def _has_diverged(self, step: int) -> bool:
        """Return whether the loss of the samples of `step`, finite before it, is not finite any more. Collective.

        Then the weights are what is bad, not the samples since: what was saved before stays the newest.
        """
        batches = self.loader.batches(step - 1, step)
        return not math.isfinite(mean_loss(self.denoiser, self.objective, batches, self.engine.device))

    def _record(self, trained: TrainedStep, rate: float, *, step_s: float, wait_s: float) -> None:
        if not self.tracker:
            return
        memory = {**measured_bytes(self.engine, self.ema), "activations": self.activation_bytes}
        if self.frozen_bytes:
            memory["frozen"] = self.frozen_bytes
        self.tracker.step(
            self.step,
            {
                "train/loss": trained.loss,
                "train/learning_rate": rate,
                "train/grad_norm": trained.result.grad_norm,
                "train/dropped_captions": trained.num_dropped / self.slicing.global_size,
                "throughput/samples_per_s": self.slicing.global_size / step_s,
                "throughput/data_wait_s": wait_s,
                **{f"data/share/{name}": share for name, share in self.loader.shares(self.step).items()},
                **{f"memory_mb/{kind}": value / 1e6 for kind, value in memory.items()},
            },
            self.loader.ids(self.step - 1),
            bad_ids=trained.bad_ids if trained.result.is_skipped else None,
        )
        if not self.is_memory_told:
            self.is_memory_told = True
            self._tell_memory(memory)
        if trained.result.is_skipped:
            self._say(f"step {self.step} was skipped: {self._what_is_bad(trained)}")

    def _tell_memory(self, measured: Mapping[str, int]) -> None:
        """Record what was predicted beside what the first step of this process measured.

        To predict takes a second or two: where the stage goes on with as many ranks, it has been done.
        """
        assert self.tracker is not None
        if self.has_as_many_ranks_as_before:
            self._say("memory on each rank, " + listed_mb(measured))
            return
        is_on_gpu = self.engine.device.type == "cuda"
        predicted = predict(self.config, self.rank.world_size, self.engine.dtype, on_gpu=is_on_gpu, stage=self.stage)
        self.tracker.scalars(self.step, {f"predicted_mb/{kind}": value / 1e6 for kind, value in predicted.items()})
        self._say("memory on each rank, " + compared(predicted, measured))

    def _validate(self, stop: StopRequest | None = None) -> None:
        """Record the loss of the first average on every database of the run that has shards, trained on or not.

        At the last step also the loss of every kept length, to choose from.
        stop: what may end it before anything is recorded. Raises: StoppedOnRequest if it does.
        """
        losses = self._losses_of(self.ema.first, self.held_out.databases("validation"), stop)
        mean = self._mean_over_stage(losses)
        self.progress.validation_losses[self.step] = mean if math.isfinite(mean) else None
        if self.tracker:
            self.tracker.validation(self.step, losses, mean)
            self._say(f"step {self.step}, validation loss {mean:.4f}")
        if self.step == self.num_steps and len(self.ema.slices) > 1:
            for name, slices in self.ema.slices.items():
                is_known = slices is self.ema.first
                self._record_length(
                    name, mean if is_known else self._mean_over_stage(self._losses_of(slices, self.stage.databases))
                )

    def _record_length(self, name: str, mean: float) -> None:
        """Record the loss of one average, by its name in checkpoints (`ema@0.1`)."""
        if self.tracker:
            length = f"@{average_length(name):g}"
            self.tracker.scalars(self.step, {f"validation/loss{length}": mean})
            self._say(f"step {self.step}, validation loss{length} {mean:.4f}")

    def _losses_of(
        self, slices: Sequence[Tensor] | None, databases: Sequence[str], stop: StopRequest | None = None
    ) -> dict[str, float]:
        """Return the loss of the weights in `slices` (None: the newest ones) on each of `databases`. Collective."""
        with self._lent_weights(slices):
            return self.held_out.losses(self.denoiser, databases, stop=stop)

    def _mean_over_stage(self, losses: Mapping[str, float]) -> float:
        return sum(losses[name] for name in self.stage.databases) / len(self.stage.databases)

    def _show_preview(self, stop: StopRequest | None = None) -> None:
        """Draw the preview with the first average. stop: what may end it. Raises: StoppedOnRequest if it does."""
        with self._lent_weights(self.ema.first):
            images = self.preview.draw(stop)
        if self.tracker:
            self.tracker.images(self.step, images)

    def _save_model(self) -> None:
        """Write the averaged weights as a diffusers folder, whole or not at all; it says how many steps they had."""
        trained = self.engine.gather(self.ema.first or [group.master for group in self.engine.groups])
        error = None
        if trained is not None:
            base = self.config.model.base
            training = training_until(self.config, self.stage, self.shards, base)
            record = model_record(self.config, self.stage, self.facts, self.step, base, training)
            record["validation_loss"] = self.progress.validation_losses.get(self.step)
            try:
                files = files_of_lineage(self.config.stage_path(self.stage))
                files |= lora_files(trained, self.stage.trains, self.stage.lora)
                weights = whole_weights(self.config.model, trained, self.stage.trains, self.stage.lora)
                folder = self.config.stage_model(self.stage)
                save_pipeline(self.config.model, weights, folder, record, files, self.stage.network)
            except (OSError, SafetensorError) as failure:
                checkpoints = self.checkpoints.folder
                error = f"could not write the model: {failure}; the last checkpoint in {checkpoints} is whole"
        raise_together(error, self.rank)


def listed(ids: Sequence[str]) -> str:
    """Return the distinct names among `ids` for a message: the first eight, and how many more there are."""
    names = list(dict.fromkeys(ids))
    more = len(names) - MAX_NAMED_SAMPLES
    return ", ".join(names[:MAX_NAMED_SAMPLES]) + (f" and {more} more" if more > 0 else "")
