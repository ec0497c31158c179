"""The benchmark of start and resume: what it reads of steps, and once in whole."""

from pathlib import Path

import pytest

from benchmarks.start import measure, times_in, train_until_told, write_config


def test_a_line_that_is_being_written_is_no_step_yet(tmp_path: Path) -> None:
    file = tmp_path / "times.jsonl"
    assert times_in(file) == []
    file.write_text('{"step": 1, "time": 5.5}\n{"step": 2, "ti', encoding="utf-8")
    assert times_in(file) == [5.5]


@pytest.mark.slow
def test_a_run_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    config = write_config(tmp_path, 4)  # without shards
    with pytest.raises(RuntimeError, match="sonoshard train ended with 2"):
        train_until_told(config, tmp_path / "run")


@pytest.mark.slow
def test_both_start_and_go_on(tmp_path: Path) -> None:
    figures = measure(tmp_path, 16, 1)
    assert figures["ours"].keys() == {"start_s", "resume_s", "stop_s", "checkpoint_mb"}
    assert figures["diffusers' example"].keys() == {"start_s", "resume_s", "checkpoint_mb"}
    assert all(value > 0 for found in figures.values() for value in found.values())
    # Moments of 8 bits instead of 32; no average.
    assert figures["ours"]["checkpoint_mb"] < 0.6 * figures["diffusers' example"]["checkpoint_mb"]
