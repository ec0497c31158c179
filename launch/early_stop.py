"""When a stage ends before its last step: nothing but its validation losses decides, so a resumed one ends alike."""

from collections.abc import Mapping

from launch.stage_config import EarlyStopConfig


def lowest_step(losses: Mapping[int, float]) -> int | None:
    """Return the step with the lowest loss, the first of equal ones; what the stage started from (0) is left out."""
    trained = [step for step in sorted(losses) if step > 0 and losses[step] == losses[step]]  # not NaN
    return min(trained, key=losses.__getitem__, default=None)


def is_over(losses: Mapping[int, float], config: EarlyStopConfig | None) -> bool:
    """Return whether the last `patience` losses, by step, brought no improvement on those before them."""
    if config is None:
        return False
    lowest, num_without = float("inf"), 0
    for step in sorted(losses.keys() - {0}):
        if losses[step] < lowest * (1 - config.min_improvement):
            lowest, num_without = losses[step], 0
        else:
            num_without += 1
    return num_without >= config.patience
