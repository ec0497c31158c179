"""When a stage ends early: nothing but the history of its validation losses decides."""

import pytest

from launch.early_stop import is_over, lowest_step
from launch.stage_config import EarlyStopConfig


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ({0: 1.0, 10: 0.9, 20: 0.8}, 1, False),
        ({0: 1.0, 10: 0.9, 20: 0.95}, 1, True),
        ({0: 1.0, 10: 0.9, 20: 0.95}, 2, False),
        ({0: 1.0, 10: 0.9, 20: 0.95, 30: 0.9}, 2, True),  # as low is not lower
        ({0: 1.0, 10: 0.9, 20: 0.95, 30: 0.8}, 2, False),
        ({0: 0.1, 10: 0.9, 20: 0.8}, 2, False),  # that of the start is no competitor
        ({10: 0.9, 20: None, 30: None}, 2, True),
        ({}, 1, False),
    ],
)
def test_it_is_over_after_so_many_validations_without_a_lower_loss(
    losses: dict[int, float | None], patience: int, expected: bool
) -> None:
    assert is_over(losses, EarlyStopConfig(patience=patience)) is expected
    assert not is_over(losses, None)


def test_an_improvement_must_be_large_enough() -> None:
    losses: dict[int, float | None] = {10: 1.0, 20: 0.99, 30: 0.985}
    assert is_over(losses, EarlyStopConfig(patience=2, min_improvement=0.02))
    assert not is_over(losses, EarlyStopConfig(patience=2, min_improvement=0.001))
    # 0.97 is 2 % lower than the last that counted, though not than the one before it.
    assert not is_over({**losses, 40: 0.97}, EarlyStopConfig(patience=3, min_improvement=0.02))


def test_the_lowest_step_is_the_first_of_the_lowest_after_the_start() -> None:
    assert lowest_step({0: 0.1, 10: 0.5, 20: 0.4, 30: 0.4, 40: None}) == 20
    assert lowest_step({0: 0.1}) is None
