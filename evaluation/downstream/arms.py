"""What the networks of a comparison are trained on; all else, the number of steps above all, is the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from evaluation.downstream.paired import Measure
from evaluation.downstream.result import ArmResult

TEST_SPLIT = "test split"


@dataclass(frozen=True)
class Arm:
    """One kind of training set. is_augmented: images are varied by `evaluation.jitter` each time they are seen."""

    name: str
    has_generated: bool
    is_augmented: bool


REAL = Arm("real", has_generated=False, is_augmented=False)
# The baseline first. The last tells whether generated images are of use to those who augment anyway.
ARMS = (
    REAL,
    Arm("real + augmentation", has_generated=False, is_augmented=True),
    Arm("real + generated", has_generated=True, is_augmented=False),
    Arm("real + both", has_generated=True, is_augmented=True),
)


def compared(
    arms: Sequence[Arm],
    answers_of: Callable[[Arm], NDArray[Any]],
    clusters: Sequence[str],
    measure: Measure,
    seed: int,
    *,
    num_real: int,
    num_generated: int,
) -> tuple[ArmResult, ...]:
    """Return what the networks of each arm reach in the test images of these patients; the first is the baseline.

    answers_of: gives what an arm's networks say of the test images, [S, N, ...]: S seeds, N images.
    """
    results: list[ArmResult] = []
    baseline = None
    for arm in arms:
        answers = answers_of(arm)
        results.append(
            ArmResult.of(
                arm.name,
                answers,
                clusters,
                measure,
                seed,
                baseline=baseline,
                num_real=num_real,
                num_generated=num_generated if arm.has_generated else 0,
                is_augmented=arm.is_augmented,
                tested_on=TEST_SPLIT,
            )
        )
        baseline = baseline or (arm.name, answers)
    return tuple(results)
