"""How far a phase of training has come, what that means for the learning rate, and the average of the weights."""

import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

REPORT_EVERY_STEPS = 250


class Pace:
    """Counts the steps of one phase and prints what it is told of them.

    Without a time limit a run is a function of its recipe and seed, up to the rounding of the device. With one, the
    schedules follow whichever of steps and time has come further, so that the phase always ends fully annealed.
    """

    def __init__(self, name: str, steps: int, time_limit_s: float | None = None):
        self.name = name
        self.steps = steps
        self.time_limit_s = time_limit_s
        self.step = 0
        self.fraction = 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the phase began."""
        return time.monotonic() - self._start

    def __iter__(self) -> Iterator[int]:
        while self.step < self.steps and self.fraction < 1:
            yield self.step
            self.step += 1
            self.fraction = self.step / self.steps
            if self.time_limit_s is not None:
                self.fraction = max(self.fraction, self.seconds / self.time_limit_s)

    def learning_rate(self, peak: float, *, warmup: float = 0.02, floor: float = 0.01) -> float:
        """Return the learning rate now: a linear rise over the fraction `warmup`, then half a cosine to `floor`."""
        if self.fraction < warmup:
            return peak * max(self.fraction / warmup, 1e-2)
        share = (self.fraction - warmup) / (1 - warmup)
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1))))

    @property
    def is_reporting(self) -> bool:
        """True at steps whose losses are worth fetching from the device: few, and more at the start."""
        return self.step in (50, 100) or self.step % REPORT_EVERY_STEPS == 0 or self.step == self.steps - 1

    def report(self, **figures: float | Tensor) -> None:
        """Print the figures of the current step."""
        texts = " ".join(f"{name} {float(torch.as_tensor(figure).detach()):.4f}" for name, figure in figures.items())
        rate = self.step / max(self.seconds, 1e-9)
        print(f"{self.name} {self.step}/{self.steps} {self.seconds:.0f} s {rate:.1f} steps/s {texts}", flush=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class Average:
    """An exponential moving average of parameters that forgets faster while it is young."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self._live: list[Tensor] = list(parameters)
        self._mean = [parameter.detach().clone() for parameter in self._live]
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 10))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Overwrite the parameters with their average."""
        for parameter, mean in zip(self._live, self._mean, strict=True):
            parameter.copy_(mean)
