"""The training loop of the networks that judge generated images: the segmenter and the classifier."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

# B images of a batch, H W height and width in pixels

# Share of the steps in which the learning rate rises; then it falls.
WARMUP_SHARE = 0.15


class FitSettings(Protocol):
    """What a configuration says of the loop. lr: the highest learning rate. seed: of the order and what is drawn."""

    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


def network_input(images_BHW: Tensor) -> Tensor:
    """Return grey images as the networks take them: [B, 1, H, W], channels last."""
    return images_BHW[:, None].to(memory_format=torch.channels_last)


def fit(
    network: nn.Module,
    num_images: int,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    settings: FitSettings,
) -> None:
    """Train a network, in place.

    loss_of: returns the loss of a batch, a scalar; its arguments are the images' numbers, int64 [batch_size], and what
    augmentation draws from. Every image is taken as often as any other, to one.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.steps, pct_start=WARMUP_SHARE, cycle_momentum=False
    )
    order = torch.empty(0, dtype=torch.long)
    for _ in range(settings.steps):
        while len(order) < settings.batch_size:
            order = torch.cat([order, torch.randperm(num_images, generator=generator)])
        chosen, order = order[: settings.batch_size], order[settings.batch_size :]
        loss = loss_of(chosen, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
