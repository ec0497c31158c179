"""The tables of docs/scaling.md are those of the script, and its formulas are those of the sources."""

from pathlib import Path

import pytest
from torch import nn

from benchmarks.scaling import HOP_S, PAGE, STAGES, Collective, collectives, communication_s, num_buckets, tables
from benchmarks.written_table import written
from distributed.config import ZeroConfig

ROOT = Path(__file__).parent.parent.parent


def test_the_page_has_the_tables_that_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        assert written(page, name) == table, f"{name}: run python -m benchmarks.scaling"


def test_a_ring_sends_what_the_sources_say() -> None:
    gather = Collective("all-gather", 1, 800, every_micro_batch=False)
    reduce = Collective("all-reduce", 1, 800, every_micro_batch=False)
    assert gather.sent_bytes(8) == 700
    assert reduce.sent_bytes(8) == 2 * gather.sent_bytes(8)
    assert gather.time_s(8, 1e30) == pytest.approx(7 * HOP_S)
    # Of next to nothing, the tree is faster from 4 GPUs on: 2 log2 N hops.
    assert reduce.time_s(512, 1e30) == pytest.approx(18 * HOP_S)


def test_stages_send_what_was_counted() -> None:
    # 20,000 weights in two matrices, and biases that ZeRO-3 keeps gathered.
    module = nn.Sequential(nn.Linear(100, 150), nn.Linear(150, 100))
    whole = 2 * sum(p.numel() for p in module.parameters())
    sent = {
        stage: [(one.kind, one.bytes, one.every_micro_batch) for one in collectives(module, ZeroConfig(stage=stage))]
        for stage in STAGES
    }
    divided = 2 * 2 * 100 * 150
    assert sent[0] == [("all-reduce", whole, False)]
    assert sent[1] == [("all-reduce", whole, False), ("all-gather", whole, False)]
    assert sent[2] == [("all-reduce", whole, True), ("all-gather", whole, False)]
    assert sent[3][:2] == [("all-gather", 2 * divided, True), ("reduce-scatter", whole, True)]


def test_accumulation_costs_nothing_under_stage_1_and_gradients_under_stage_2() -> None:
    module = nn.Linear(1000, 1000)
    costs = {
        stage: [communication_s(collectives(module, ZeroConfig(stage=stage)), 8, "25 Gbit/s", a) for a in (1, 3)]
        for stage in STAGES
    }
    assert costs[0][1] == costs[0][0]
    assert costs[1][1] == costs[1][0]
    assert costs[1][0] < costs[2][1] < 3 * costs[2][0]
    assert costs[3][1] > 2.9 * costs[3][0]


def test_a_gradient_that_does_not_fit_begins_the_next_bucket() -> None:
    assert num_buckets([3, 3, 3], 6) == 2
    assert num_buckets([9, 1], 6) == 2
    assert num_buckets([], 6) == 0
