"""One optimizer step: the micro batches of a global batch through the objective, then the engine."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from data.hints import hint_images
from data.loader import Batch
from distributed.engine import Engine
from distributed.rank import Rank
from distributed.zero.partitioning import StepResult
from models.objective import (
    ObjectiveConfig,
    denoising_loss,
    sampled_quantile,
    timesteps_from_quantile,
    with_offset,
)
from models.schedule import NoiseSchedule

# B samples of a micro batch, N this rank's samples of a step


@dataclass(frozen=True)
class TrainedStep:
    """What one step was: the mean loss and the captions dropped over the global batch, and what the engine did.

    bad_ids: where the step was skipped, the samples of all ranks whose own loss was not finite, in order.
    """

    loss: float
    num_dropped: int
    result: StepResult
    bad_ids: tuple[str, ...] = ()


class Objective:
    """The loss of a batch of the loader, on one device."""

    def __init__(self, schedule: NoiseSchedule, config: ObjectiveConfig, device: torch.device) -> None:
        self._schedule = replace(schedule, alpha_bar_T=schedule.alpha_bar_T.to(device))
        self._config = config
        self._device = device

    def losses(self, unet: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample, [B] float32."""
        noise_BChw = self._tensor(batch.noise_BChw)
        if self._config.noise_offset > 0:
            noise_BChw = with_offset(noise_BChw, self._tensor(batch.offset_BC), self._config.noise_offset)
        # On the CPU: the check of their range would make a GPU wait.
        quantile_B = sampled_quantile(torch.from_numpy(batch.timestep_B), self._config)
        return denoising_loss(
            unet,
            self._schedule,
            self._config,
            self._tensor(batch.latents_BChw) * self._schedule.scaling_factor,
            noise_BChw,
            timesteps_from_quantile(quantile_B, self._schedule).to(self._device),
            self._tensor(batch.text_BLD),
            None if batch.hint_BHW is None else self._tensor(hint_images(batch.hint_BHW)),
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def train_step(
    engine: Engine, denoiser: nn.Module, objective: Objective, batches: Iterator[Batch], learning_rate: float
) -> TrainedStep:
    """Take this rank's micro batches of one global batch from `batches` and update the weights. Collective.

    denoiser: what predicts the noise through `engine.network`. The engine skips a step whose gradient is not finite,
    and so one in which the loss of any sample is not.
    """
    denoiser.train()
    losses: list[Tensor] = []  # they stay on the device: to look at each would make a GPU wait
    ids: list[str] = []
    num_dropped = 0
    result = None
    while result is None:
        batch = next(batches)
        loss_B = objective.losses(denoiser, batch)
        engine.accumulate(with_bad_gradient_where_bad(loss_B).mean())
        result = engine.finish_micro_batch(learning_rate)
        losses.append(loss_B.detach())
        ids += batch.ids
        num_dropped += sum(batch.is_dropped)
    loss_N = torch.cat(losses)
    loss_sum_all, num_samples_all, num_dropped_all = _sum_over_ranks(loss_N.double().sum(), len(ids), num_dropped)
    return TrainedStep(
        loss=loss_sum_all / num_samples_all,
        num_dropped=int(num_dropped_all),
        result=result,
        bad_ids=_bad_ids(loss_N, ids, engine.rank) if result.is_skipped else (),
    )


def with_bad_gradient_where_bad(loss_B: Tensor) -> Tensor:
    """Return `loss_B` with a gradient of NaN where a loss is not finite, the same to the bit where it is.

    The gradient of an infinite loss may be finite: that of a square that overflowed is.
    """
    return loss_B * torch.where(loss_B.detach().isfinite(), 1.0, torch.nan)


def _bad_ids(loss_N: Tensor, ids: list[str], rank: Rank) -> tuple[str, ...]:
    """Return the ids of all ranks' samples whose loss is not finite, in the order of their positions. Collective."""
    mine = [id_ for id_, is_finite in zip(ids, loss_N.isfinite().tolist(), strict=True) if not is_finite]
    of_ranks: list[list[str]] = [[]] * rank.world_size
    dist.all_gather_object(of_ranks, mine)
    return tuple(id_ for part in of_ranks for id_ in part)


@torch.no_grad()
def mean_loss(denoiser: nn.Module, objective: Objective, batches: Iterator[Batch], device: torch.device) -> float:
    """Return the mean loss over all ranks' `batches`, without repeats, with the module's present weights. Collective.

    Every rank must have equally many batches: a call of the network is collective under ZeRO-3.
    """
    denoiser.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    num_samples = 0
    for batch in batches:
        counts_B = ~torch.tensor(batch.is_repeat)
        loss_sum += objective.losses(denoiser, batch)[counts_B.to(device)].double().sum()
        num_samples += int(counts_B.sum())
    loss_sum_all, num_samples_all = _sum_over_ranks(loss_sum, num_samples)
    return loss_sum_all / num_samples_all


def _sum_over_ranks(loss_sum: Tensor, *counts: int) -> list[float]:
    """Return the sums over all ranks of a loss (float64, on the device) and of counts; collective if there are any."""
    sums = torch.stack([loss_sum, *torch.tensor(counts, dtype=torch.float64, device=loss_sum.device)])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return [float(value) for value in sums.cpu()]
