"""The benchmark of the sampler makes its own bundles, and both engines draw from the same model."""

from pathlib import Path

import pytest

from benchmarks.sampler import ENGINES, beside, compare, export_bundles

FIGURES = {"cold_start_s", "image_s_batch_1", "image_s_batch_4", "peak_bytes"}


@pytest.mark.slow
def test_it_draws_from_bundles_that_it_exports(tmp_path: Path) -> None:
    plain, control = export_bundles(tmp_path)
    figures = {"with": compare(control, True, 1, 1)}
    assert {engine: found.keys() for engine, found in figures["with"].items()} == dict.fromkeys(ENGINES, FIGURES)
    assert [one.what for one in beside(figures)] == [
        "sampler, cold start, with ControlNet",
        "sampler, an image, with ControlNet",
        "sampler, peak, with ControlNet",
    ]
    assert (plain / "manifest.json").is_file()
