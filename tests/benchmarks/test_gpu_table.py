"""The tables of docs/which-gpu.md: what the script would write now, and that it keeps to what it says."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_table import (
    KINDS,
    NOTHING_FITS,
    PAGE,
    Training,
    configuration,
    fitting_table,
    largest_micro_size,
    parts_table,
    state_bytes,
    training,
)
from benchmarks.written_table import rewritten, written
from distributed.config import ZeroConfig
from launch.memory import predict

ROOT = Path(__file__).parent.parent.parent


def test_the_room_is_what_the_page_says() -> None:
    # 0.9 x (11 - 0.5) GB are 9.45 GB.
    assert largest_micro_size(11, 8_450_000_000, 250_000_000) == 4
    assert largest_micro_size(11, 8_450_000_001, 250_000_000) == 3
    assert largest_micro_size(11, 10_000_000_000, 250_000_000) == 0


def test_a_part_of_a_page_is_replaced_alone() -> None:
    page = "a\n<!-- one: by x -->\nold\n<!-- end of one -->\nb\n"
    assert rewritten(page, "one", "new") == "a\n<!-- one: by x -->\n\nnew\n\n<!-- end of one -->\nb\n"
    assert written(rewritten(page, "one", "new"), "one") == "new"
    with pytest.raises(ValueError, match=r"needed one `<!-- two: ... -->`.*found 0 and 0"):
        written(page, "two")


def test_state_and_activations_of_the_page_are_those_of_the_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = configuration("diffusion", tmp_path)
    of = Training(config, {False: 10**9, True: 10**9})
    state = sum(state_bytes(config, ZeroConfig(stage=2), 8))
    kinds = predict(config, 8, torch.bfloat16, on_gpu=True)
    assert state == sum(kinds.values()) - kinds["activations"]
    stored = written(PAGE.read_text(encoding="utf-8"), "parts table").splitlines()
    assert f"| {state / 1e9:.2f} |" in next(
        line for line in stored if line.startswith("| Stable Diffusion 1.5, ZeRO-2 |")
    )
    image = next(line for line in stored if line.startswith("| Stable Diffusion 1.5, each image"))
    assert f"/ {kinds['activations'] / 1e9:.3f} |" in image
    table = fitting_table(of).splitlines()
    assert table[2] == f"| 11 GB | 1 | {NOTHING_FITS} | {NOTHING_FITS} | {NOTHING_FITS} | 7 / 7 |"


@pytest.mark.slow
def test_the_page_has_the_tables_that_the_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    trainings = {kind: training(kind, tmp_path) for kind in KINDS}
    for kind, of in trainings.items():
        assert written(page, f"{kind} table") == fitting_table(of)
    assert written(page, "parts table") == parts_table(trainings)
