"""A few kills of the drill; `make drill` is the whole of it."""

import sys
from pathlib import Path

import pytest

from tests.drill import drill


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks through /proc")
def test_a_run_that_is_killed_again_and_again_ends_the_same(prepared: Path, tmp_path: Path) -> None:
    # Of this seed are kills at the manifest, in a start, at the slices, at the folder of a save beside training, and at
    # the model.
    drill(prepared, tmp_path, num_kills=5, seed=6)
