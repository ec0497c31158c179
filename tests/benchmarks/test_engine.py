"""What the tables of the engine make of its rows. Nothing is trained."""

from typing import Any

import pytest

from benchmarks.engine import beside, gains, limits_of, scaling_table


def row(processes: int, contender: str, wall_ms: float, wall_ratio: float) -> dict[str, Any]:
    keys = {"optimizer": "adamw", "processes": processes, "contender": contender}
    return {**keys, "wall_ms": wall_ms, "wall_ratio": wall_ratio}


ROWS = [
    row(1, "plain torch", 100.0, 1.0),
    row(1, "ZeRO-2", 90.0, 0.9),
    row(2, "torch DDP", 125.0, 1.0),
    row(2, "ZeRO-2", 100.0, 0.81),
]
STEPS = [
    {"threads": 1, "contender": "bitsandbytes", "wall_ms": 200.0, "wall_ratio": 1.0, "extra_bytes": 100_000_000},
    {"threads": 1, "contender": "chunked", "wall_ms": 140.0, "wall_ratio": 0.7, "extra_bytes": 10_000_000},
]


def test_two_processes_see_twice_the_samples() -> None:
    assert gains(ROWS) == {
        ("adamw", "torch DDP"): (100.0, pytest.approx(1.6)),
        ("adamw", "ZeRO-2"): (90.0, pytest.approx(1.8)),
    }
    assert scaling_table(ROWS).rows == [["adamw", "torch DDP", "100.0", "1.60"], ["adamw", "ZeRO-2", "90.0", "1.80"]]


def test_ours_is_set_beside_what_it_was_measured_with() -> None:
    said = {one.what: (one.ours, one.alternative, one.said) for one in beside(ROWS, STEPS)}
    # The ratio of a step is the median round's, not that of the medians.
    assert said == {
        "a step, adamw, ZeRO-2, 1 process": ("90.0 ms", "plain torch 100.0 ms", "0.90 of the time"),
        "a step, adamw, ZeRO-2, 2 processes": ("100.0 ms", "torch DDP 125.0 ms", "0.81 of the time"),
        "samples/s of 2 processes to 1, adamw, ZeRO-2": ("1.80 times", "torch DDP 1.60 times", "1.12 times the rate"),
        "8-bit step on the CPU, 1 thread": ("140.0 ms", "bitsandbytes 200.0 ms", "0.70 of the time"),
        "8-bit step on the CPU, 1 thread: memory in passing": (
            "10.0 MB",
            "bitsandbytes 100.0 MB",
            "0.10 of the memory",
        ),
    }


def test_a_gpu_alone_has_one_process_and_no_step_on_the_cpu() -> None:
    assert [one.what for one in beside(ROWS[:2], [])] == ["a step, adamw, ZeRO-2, 1 process"]


def test_each_ratio_has_its_limit() -> None:
    rows = [row(2, "ZeRO-1", 115.0, 1.16), row(2, "ZeRO-3", 400.0, 4.0), *ROWS]
    judged = {limit.what: limit.is_kept for limit in limits_of(rows, STEPS)}
    assert judged == {
        "time of a step, adamw, ZeRO-1, 2 process(es)": False,
        "time of a step, adamw, ZeRO-2, 1 process(es)": True,
        "time of a step, adamw, ZeRO-2, 2 process(es)": True,
        "time of the 8-bit step, 1 thread(s)": True,
    }
