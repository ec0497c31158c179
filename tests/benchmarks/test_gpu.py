"""The benchmark for a GPU: its cells, what it says of one that does not fit, and the whole of it on a CPU, in small."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import Cell, beside, cells, table
from distributed.config import refuse_impossible

ROOT = Path(__file__).parent.parent.parent


def test_every_cell_is_a_run_that_is_not_refused(tmp_path: Path) -> None:
    # 2 networks x (plain, ZeRO 0, 2, 3) x 2 optimizers x checkpointing x compiled.
    assert len({cell.name for cell in cells()}) == 64
    for cell in cells():
        config = cell.config(tmp_path, "sd15", 512, 4)
        refuse_impossible(config.optimizer, config.zero, is_bf16=config.precision == "bf16", has_gpu=True)
        assert config.model.gradient_checkpointing == cell.has_checkpointing
        assert config.model.compile == cell.is_compiled
        assert config.optimizer.name == cell.optimizer
        assert cell.way in ("plain", f"zero{config.zero.stage}")
        assert config.stages[0].has_hints == (cell.kind == "controlnet")


def test_chosen_cells_come_with_the_plain_loop_of_the_same_settings() -> None:
    plain = Cell("controlnet", "plain", "adamw", has_checkpointing=True)
    assert cells(["controlnet-zero3-adamw-checkpointing"]) == [
        plain,
        Cell("controlnet", "zero3", "adamw", has_checkpointing=True),
    ]
    assert len(cells(["diffusion-*-adamw8bit"])) == 4
    assert cells(["no such cell"]) == []


def test_what_does_not_fit_is_said_and_set_beside_nothing() -> None:
    one, other = Cell("diffusion", "zero2", "adamw"), Cell("diffusion", "zero2", "adamw8bit")
    found: dict[Cell, dict[str, Any]] = {
        one.reference: {"is_out_of_memory": True},
        one: {"images_per_s": 2.0, "peak_bytes": 10**9},
        other.reference: {"images_per_s": 4.0, "peak_bytes": 2 * 10**9},
        other: {"images_per_s": 3.0, "peak_bytes": 10**9},
    }
    assert [row[4:] for row in table(found)] == [
        ["plain", "out of memory", "", "", ""],
        ["zero2", "2.00", "", "1.00", ""],
        ["plain", "4.00", "1.00", "2.00", "1.00"],
        ["zero2", "3.00", "0.75", "1.00", "0.50"],
    ]
    assert [(one.what, one.said) for one in beside(found)] == [
        ("diffusion-zero2-adamw8bit", "0.75 times the rate"),
        ("diffusion-zero2-adamw8bit, peak", "0.50 of the memory"),
    ]


def gpu_sh(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_says_so() -> None:
    done = gpu_sh()
    assert done.returncode == 2
    assert done.stderr.endswith("gpu.sh: torch finds no CUDA device here; --quick tries the programs without one\n")


@pytest.mark.slow
def test_the_script_measures_the_built_in_model_on_a_cpu(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = gpu_sh("--quick", "--only", "gpu", "--page", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    written = page.read_text(encoding="utf-8")
    assert "Written by `benchmarks/gpu.sh --quick --only gpu`" in written
    assert re.search(r"^\| diffusion \| adamw8bit \| off \| no \| plain \| [\d.]+ \| 1.00 \|", written, re.MULTILINE)
    assert re.search(r"^\| diffusion \| adamw8bit \| off \| no \| zero2 \| [\d.]+ \| [\d.]+ \|", written, re.MULTILINE)
