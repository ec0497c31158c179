"""The curriculum drill, small; `python -m tests.curriculum_drill` is the whole of it."""

import sys
from pathlib import Path

import pytest

from tests.curriculum_drill import drill


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks through /proc")
def test_a_curriculum_that_is_killed_twice_ends_the_same(tmp_path: Path) -> None:
    steps = {"breast": 4, "cardiac": 6, "fetal": 2, "cardiac_alone": 2, "fetal_alone": 2, "few": 2, "control": 6}
    drill(
        tmp_path,
        [
            *(f"databases.{name}.count=30" for name in ("breast", "cardiac", "fetal")),
            *(f"stages.{number}.steps={count}" for number, count in enumerate(steps.values())),
            "checkpoint.save_every_steps=2",
            "validation={every_steps: 2, num_samples: 2}",
            "preview={every_steps: null, sampling: {steps: 1}}",
        ],
    )
