"""When a stage ends before its last step: nothing but its validation losses decides, so a resumed one ends alike.

losses: by step; None where it was not finite.
"""

from collections.abc import Mapping

from launch.stage_config import EarlyStopConfig


def lowest_step(losses: Mapping[int, float | None]) -> int | None:
    """Return the step with the lowest loss, the first of equal ones; what the stage started from (0) is left out."""
    trained = [(loss, step) for step, loss in losses.items() if step > 0 and loss is not None]
    return min(trained)[1] if trained else None


def is_over(losses: Mapping[int, float | None], config: EarlyStopConfig | None) -> bool:
    """Return whether the last `patience` losses, by step, brought no improvement on those before them."""
    if config is None:
        return False
    lowest, num_without = float("inf"), 0
    for step in sorted(losses.keys() - {0}):
        loss = losses[step]
        if loss is not None and loss < lowest * (1 - config.min_improvement):
            lowest, num_without = loss, 0
        else:
            num_without += 1
    return num_without >= config.patience
