"""One optimizer step: the micro batches of a global batch through the objective, then the engine."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from data.loader import Batch
from distributed.engine import Engine
from distributed.zero.partitioning import StepResult
from models.objective import ObjectiveConfig, denoising_loss, timesteps_from_quantile
from models.schedule import NoiseSchedule


@dataclass(frozen=True)
class TrainedStep:
    """What one step was: the mean loss and the captions dropped over the global batch, and what the engine did."""

    loss: float
    num_dropped: int
    result: StepResult


class Objective:
    """The loss of a batch of the loader, on one device."""

    def __init__(self, schedule: NoiseSchedule, config: ObjectiveConfig, device: torch.device) -> None:
        self._schedule = replace(schedule, alpha_bar_T=schedule.alpha_bar_T.to(device))
        self._config = config
        self._device = device

    def losses(self, unet: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample, [B] float32."""
        return denoising_loss(
            unet,
            self._schedule,
            self._config,
            self._tensor(batch.latents_BChw) * self._schedule.scaling_factor,
            self._tensor(batch.noise_BChw),
            # On the CPU: the check of their range would make a GPU wait.
            timesteps_from_quantile(torch.from_numpy(batch.timestep_B), self._schedule).to(self._device),
            self._tensor(batch.text_BLD),
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def train_step(engine: Engine, objective: Objective, batches: Iterator[Batch], learning_rate: float) -> TrainedStep:
    """Take this rank's micro batches of one global batch from `batches` and update the weights. Collective."""
    engine.module.train()
    loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
    num_samples = num_dropped = 0
    result = None
    while result is None:
        batch = next(batches)
        loss_B = objective.losses(engine.network, batch)
        engine.accumulate(loss_B.mean())
        result = engine.finish_micro_batch(learning_rate)
        loss_sum += loss_B.detach().double().sum()
        num_samples += len(batch.ids)
        num_dropped += sum(batch.is_dropped)
    loss_sum_all, num_samples_all, num_dropped_all = _sum_over_ranks(loss_sum, num_samples, num_dropped)
    return TrainedStep(loss=loss_sum_all / num_samples_all, num_dropped=int(num_dropped_all), result=result)


@torch.no_grad()
def mean_loss(engine: Engine, objective: Objective, batches: Iterator[Batch]) -> float:
    """Return the mean loss over all ranks' `batches` with the weights that the module has now. Collective."""
    engine.module.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=engine.device)
    num_samples = 0
    for batch in batches:
        loss_sum += objective.losses(engine.module, batch).double().sum()
        num_samples += len(batch.ids)
    loss_sum_all, num_samples_all = _sum_over_ranks(loss_sum, num_samples)
    return loss_sum_all / num_samples_all


def _sum_over_ranks(loss_sum: Tensor, *counts: int) -> list[float]:
    """Return the sums over all ranks of a loss (float64, on the device) and of counts. Collective."""
    sums = torch.stack([loss_sum, *torch.tensor(counts, dtype=torch.float64, device=loss_sum.device)])
    dist.all_reduce(sums)
    return [float(value) for value in sums.cpu()]
