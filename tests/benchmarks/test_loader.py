"""The benchmark of the loader measures what it says, on shards that are small enough for a test."""

from pathlib import Path

import pytest

import data.shards
from benchmarks import loader


def test_it_reads_real_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SECONDS", 0.03)
    loader.write_shards(tmp_path / "few", 20, 64, "float16")
    figures = loader.measure(tmp_path / "few" / "shards") | loader.measure_webdataset(tmp_path / "few" / "shards")
    assert figures.keys() == {"reading_per_s", "batches_per_s", "webdataset_per_s", "anonymous_mb", "file_mb"}
    monkeypatch.setattr("data.shards.OpenFile", data.shards.OpenFile)  # put back afterwards
    figures |= loader.measure_mapped(tmp_path / "few" / "shards")
    assert figures.keys() >= {"mapped_batches_per_s", "mapped_file_mb"}
    loader.write_images(tmp_path / "images", 64)
    figures |= loader.measure_images(tmp_path / "images")
    assert "png_per_s" in figures
    assert all(figures[name] > 0 for name in figures if name.endswith("_per_s"))
