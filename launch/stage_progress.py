"""How far a stage is, and what of it a checkpoint keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class StageProgress:
    """How far a stage is.

    num_bad_steps: of the last steps in a row, those that were skipped as their gradient was not finite.
    validation_losses: by step; None where it was not finite.
    is_looked_at: whether this step was validated and shown, where that was due.
    """

    step: int = 0
    num_bad_steps: int = 0
    validation_losses: dict[int, float | None] = field(default_factory=dict)
    is_looked_at: bool = True

    @classmethod
    def of(cls, position: Mapping[str, Any]) -> Self:
        """Return how far a stage was by the position of a checkpoint."""
        losses = {int(step): loss for step, loss in position.get("validation_losses", {}).items()}
        return cls(int(position["step"]), validation_losses=losses, is_looked_at=bool(position["is_looked_at"]))

    @property
    def last_good_step(self) -> int:
        """The step whose weights are those in memory: a skipped one changes nothing."""
        return self.step - self.num_bad_steps

    @property
    def position(self) -> dict[str, Any]:
        """What a checkpoint keeps of it (JSON): where the last good step was.

        A resumed run takes the bad steps again and goes the same way.
        """
        step, losses = self.last_good_step, self.validation_losses
        return {
            "step": step,
            # What was validated since, at a bad step, were the same weights.
            "validation_loss": next((losses[at] for at in sorted(losses) if at >= step), None),
            "validation_losses": {at: loss for at, loss in losses.items() if at <= step},
            "is_looked_at": self.is_looked_at or self.num_bad_steps > 0,
        }
