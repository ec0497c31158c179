"""What the benchmark of memory judges, of figures that nothing was trained for."""

from typing import Any

import pytest

from benchmarks.memory import limits_of

GB = 10**9


def figures(**measured: int) -> dict[str, Any]:
    kinds = {"parameters": 4 * GB, "master": 3 * GB, "live": 7 * GB, "resident": 10 * GB} | measured
    predicted = {"parameters": 4 * GB, "master": 3 * GB}
    return {"predicted": predicted, "measured": kinds, "formula": 8.0, "per_parameter": kinds["parameters"] * 2 / GB}


@pytest.mark.parametrize(
    ("measured", "broken"),
    [
        ({}, []),
        ({"parameters": 5 * GB}, ["predicted and measured", "bytes a parameter"]),
        ({"parameters": 3 * GB}, ["predicted and measured"]),
        ({"live": 73 * GB // 10}, ["live tensors"]),
        ({"resident": 12 * GB}, ["resident"]),
    ],
)
def test_what_is_beyond_a_limit_is_told(
    measured: dict[str, int], broken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    limits = limits_of("SD 1.5, bf16", figures(**measured))
    assert len(limits) == 4
    told = [limit.what for limit in limits if not limit.is_kept]
    assert len(told) == len(broken)
    assert all(part in what for part, what in zip(broken, told, strict=True))
    strictest = [limit.limit for limit in limits_of("SD 1.5, stochastic", figures())]
    assert strictest == [1.10, 1.03, 7.2, 8.5]
