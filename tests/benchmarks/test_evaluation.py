"""The evaluation's benchmark times drawing and judging apart, and says whether the limit holds."""

import json
import sys
from argparse import Namespace

import numpy as np
import pytest

from benchmarks import evaluation
from evaluation.feature_distance import frechet_distance

QUICK = ("--images", "8", "--size", "64", "--real", "40", "--drawn", "1", "--steps", "2", "--threads", "1")


def test_each_part_is_timed_and_all_are_judged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluation", *QUICK])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert evaluation.main() == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('{"benchmark"'))
    found = json.loads(line)
    assert (found["benchmark"], found["num_images"], found["limits"]) == ("evaluation", 8, [])
    assert sum(found["parts_s"].values()) == pytest.approx(found["judging_s"], abs=1)
    assert any("segmenter" in text for text in found["parts_s"]), "masks are judged"
    assert any("classifier" in text for text in found["parts_s"]), "labels are judged"
    assert "the nearest training image of each" in found["parts_s"]
    assert found["beside"][0]["alternative"].startswith("scipy's sqrtm")


def test_the_limit_is_for_a_whole_evaluation() -> None:
    whole = Namespace(images=1000, size=128, threads=2, steps=None)
    assert [limit.is_kept for seconds in (299, 301) for limit in evaluation.limits_of(whole, seconds)] == [True, False]
    for other in ({"images": 100}, {"size": 64}, {"threads": 4}, {"steps": 2}):
        assert evaluation.limits_of(Namespace(**{**vars(whole), **other}), 299) == []


def test_both_frechet_distances_are_one() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(50, 6)), rng.normal(1, 2, size=(40, 6))
    assert evaluation.by_square_root(one, other) == pytest.approx(frechet_distance(one, other))
