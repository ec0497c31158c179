"""One optimizer step: the micro batches of a global batch through the objective, then the engine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from data.loader import Batch
from distributed.engine import Engine, StepResult
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
        self._schedule = schedule
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
            timesteps_from_quantile(self._tensor(batch.timestep_B), self._schedule),
            self._tensor(batch.text_BLD),
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def train_step(engine: Engine, objective: Objective, batches: Iterator[Batch], learning_rate: float) -> TrainedStep:
    """Take this rank's micro batches of one global batch from `batches` and update the weights. Collective."""
    engine.module.train()
    sums = torch.zeros(3, dtype=torch.float64, device=engine.device)  # losses, samples, dropped captions
    result = None
    while result is None:
        batch = next(batches)
        loss_B = objective.losses(engine.network, batch)
        engine.accumulate(loss_B.mean())
        result = engine.finish_micro_batch(learning_rate)
        sums += _sums(loss_B, len(batch.ids), sum(batch.is_dropped))
    dist.all_reduce(sums)
    return TrainedStep(loss=float(sums[0] / sums[1]), num_dropped=int(sums[2]), result=result)


@torch.no_grad()
def mean_loss(engine: Engine, objective: Objective, batches: Iterator[Batch]) -> float:
    """Return the mean loss over all ranks' `batches` with the weights that the module has now. Collective."""
    engine.module.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)  # losses, samples
    for batch in batches:
        sums += _sums(objective.losses(engine.module, batch), len(batch.ids))
    dist.all_reduce(sums)
    return float(sums[0] / sums[1])


def _sums(loss_B: Tensor, *counts: int) -> Tensor:
    """Return the sum of the losses and `counts`, as one float64 tensor on the losses' device."""
    total = loss_B.detach().double().sum()
    return torch.stack([total, *(total.new_tensor(float(count)) for count in counts)])
