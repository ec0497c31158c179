"""What the networks of a comparison are trained on; all else, the number of steps above all, is the same."""

from dataclasses import dataclass


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
