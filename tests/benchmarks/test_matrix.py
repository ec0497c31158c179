"""The matrix of optimizers, stages and precisions: its cells, and which of them would fail it. Nothing is trained."""

from pathlib import Path

import pytest

from benchmarks.matrix import Cell, Result, chosen, matrix, show
from distributed.config import refuse_impossible


def test_every_cell_is_a_run_that_is_not_refused(tmp_path: Path) -> None:
    cells = list(matrix())
    # 4 optimizers x (4 stages x (fp32, bf16, bf16 rounded at random) + 3 stages x (fp32, bf16), offloaded).
    assert len({cell.name for cell in cells}) == len(cells) == 72
    configs = {cell: cell.config(tmp_path, 200, 1) for cell in cells}
    assert len({config.run for config in configs.values()}) == 72
    for config in configs.values():
        assert config.precision != "auto"
        refuse_impossible(config.optimizer, config.zero, is_bf16=config.precision == "bf16", has_gpu=True)
    plain, lion = (configs[Cell(name)].optimizer for name in ("adamw8bit", "lion8bit"))
    assert plain.lr == configs[Cell("adamw")].optimizer.lr == pytest.approx(4e-4)
    assert lion.lr * lion.weight_decay == pytest.approx(plain.lr * plain.weight_decay), "weights decay alike"


def test_chosen_cells_come_with_what_they_are_compared_with() -> None:
    assert chosen([]) == list(matrix())
    references = [Cell("adamw"), Cell("adamw", precision="bf16")]
    cell = Cell("lion8bit", 3, "bf16")
    assert chosen([cell.name]) == [*references, cell]
    assert chosen(["lion8bit-zero3-bf"]) == [
        *references,
        cell,
        Cell("lion8bit", 3, "bf16", is_stochastic=True),
        Cell("lion8bit", 3, "bf16", is_offloaded=True),
    ]
    assert chosen(["no such cell"]) == []


@pytest.mark.parametrize(("loss", "code"), [(1.0, 0), (1.019, 0), (1.021, 1), (float("nan"), 1)])
def test_an_8_bit_cell_may_be_two_per_cent_above_its_reference(loss: float, code: int) -> None:
    bf16 = Cell("adamw", precision="bf16")
    results = {Cell("adamw"): Result(0.5, 1), bf16: Result(1, 1), Cell("adamw8bit", 3, "bf16"): Result(loss, 1)}
    assert show(results, 200, 1) == code, "the 32-bit cell itself, twice the fp32 one, is not judged"
