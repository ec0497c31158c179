"""The loss of a network on what each database holds out: always the same samples, timesteps and noise."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from data.loader import Batch, BatchSlicing, validation_batches
from data.shards import ShardSet
from distributed.stop_request import StopRequest
from launch.config import RunConfig
from launch.step import Objective, mean_loss
from models.schedule import NoiseSchedule


class HeldOut:
    """The held-out samples of a run, as this rank takes its share of them; in one process without ranks, all."""

    def __init__(
        self,
        config: RunConfig,
        schedule: NoiseSchedule,
        shards: ShardSet,
        slicing: BatchSlicing,
        device: torch.device,
        *,
        with_hints: bool = False,
    ) -> None:
        self._config, self._shards, self._slicing, self._device = config, shards, slicing, device
        self._objective = Objective(schedule, config.objective.for_validation, device)
        self._with_hints = with_hints

    def databases(self, split: str) -> list[str]:
        """Return the run's databases that have samples in a split, trained on or not, in the configuration's order."""
        return [name for name in self._config.databases if split in self._shards.databases.get(name, ())]

    def losses(
        self,
        denoiser: nn.Module,
        databases: Sequence[str],
        split: str = "validation",
        stop: StopRequest | None = None,
    ) -> dict[str, float]:
        """Return the mean loss on each of `databases` with the module's present weights. Collective.

        In a process without ranks it is that process's own. denoiser: called with noisy latents, timesteps and text;
        with hints also with those. stop: what may end it between two batches. Raises: StoppedOnRequest if it does.
        """
        return {name: self._loss(denoiser, name, split, stop) for name in databases}

    def _loss(self, denoiser: nn.Module, database: str, split: str, stop: StopRequest | None) -> float:
        batches = validation_batches(
            self._shards,
            database,
            self._config.seed,
            num_samples=self._config.validation.num_samples,
            timesteps_per_sample=self._config.validation.timesteps_per_sample,
            slicing=self._slicing,
            with_hints=self._with_hints,
            split=split,
        )
        if stop is not None:
            batches = _until_stopped(batches, stop, self._device)
        return mean_loss(denoiser, self._objective, batches, self._device)


def _until_stopped(batches: Iterator[Batch], stop: StopRequest, device: torch.device) -> Iterator[Batch]:
    """Yield from `batches`, of which every rank has as many. Raises: StoppedOnRequest once any rank is to stop."""
    for batch in batches:
        stop.raise_if_agreed(device)
        yield batch
