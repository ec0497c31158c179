"""The benchmark of merging: both ways write the same values, and what it holds them to."""

import json
import sys

import pytest

from benchmarks import merge


@pytest.mark.slow
def test_both_ways_give_the_same_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["merge", "--unet", "tiny", "--dtype", "fp32", "--rounds", "1"])
    assert merge.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["figures"].keys() == {"soup", "ties"}
    assert [limit["what"] for limit in found["limits"]] == [
        "merge by soup, anonymous MB",
        "merge by ties, anonymous MB",
    ], "one round is no time to judge"


def test_its_limits() -> None:
    whole = {"seconds": 10.0, "anonymous_mb": 4000.0}
    slow = {"seconds": 10.1, "anonymous_mb": 281.0}
    limits = merge.limits_of({"soup": {"pieces": slow, "load all": whole}}, 10**7, 2)
    assert [(limit.limit, limit.is_kept) for limit in limits] == [(280.0, False), (1.0, False)]
    kept = {"seconds": 9.9, "anonymous_mb": 279.0}
    assert all(limit.is_kept for limit in merge.limits_of({"soup": {"pieces": kept, "load all": whole}}, 10**7, 2))
