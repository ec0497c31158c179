"""The memory tables of README.md are those that the script would write now."""

from pathlib import Path

import pytest

from benchmarks.gpu_table import training
from benchmarks.memory_table import PAGE, engine_table, training_table
from benchmarks.written_table import written

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_page_has_the_tables_that_the_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    trainings = {kind: training(kind, tmp_path) for kind in ("diffusion", "controlnet")}
    assert written(page, "engine table") == engine_table(trainings["diffusion"])
    assert written(page, "training table") == training_table(trainings)
