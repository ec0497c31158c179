"""The benchmark of the sampler makes its own bundles, and both engines draw from the same model."""

from pathlib import Path

import pytest

from benchmarks.sampler import ENGINES, TIMES, beside, compare, export_bundles, limits_of, precision_table

FIGURES = {*TIMES, "peak_bytes"}


@pytest.mark.slow
def test_it_draws_from_bundles_that_it_exports(tmp_path: Path) -> None:
    plain, control = export_bundles(tmp_path)
    figures = {"with": compare(control, True, 1, 1)}
    assert {engine: found.keys() for engine, found in figures["with"].items()} == dict.fromkeys(ENGINES, FIGURES)
    assert [one.what for one in beside(figures)] == [
        "sampler, cold start, with ControlNet",
        "sampler, an image, with ControlNet",
        "sampler, an image of 4, with ControlNet",
        "sampler, peak, with ControlNet",
    ]
    assert (plain / "manifest.json").is_file()
    table = precision_table(control, tmp_path)
    assert len(table.rows) == 6
    assert [cell.split(" of ")[1] for cell in table.rows[4][1:]] == ["2", "4", "24"], "grey levels"


def test_no_time_of_an_image_may_be_longer_than_torchs() -> None:
    same = dict.fromkeys(FIGURES, 1.0)
    slow = {**same, "image_s_batch_4": 1.1, "peak_bytes": 2.0}
    found = limits_of({"without": {"onnxruntime": same, "torch": same}, "with": {"onnxruntime": slow, "torch": same}})
    assert len(found) == 2 * sum("batch" in key for key in TIMES)
    assert [limit.what for limit in found if not limit.is_kept] == ["of 4, image s over that of torch, with ControlNet"]
