"""The evaluation's benchmark times drawing and judging apart, and says whether the limit holds."""

import json
import sys

import numpy as np
import pytest

from benchmarks import evaluation
from evaluation.feature_distance import frechet_distance

QUICK = ("--images", "8", "--size", "64", "--real", "40", "--drawn", "1", "--steps", "2", "--threads", "1")


@pytest.mark.parametrize("holds", [True, False])
def test_it_says_whether_the_limit_holds(
    holds: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "LIMIT_S", 1e6 if holds else 1e-6)
    monkeypatch.setattr(sys, "argv", ["evaluation", *QUICK])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    evaluation.main()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('{"benchmark"'))
    found = json.loads(line)
    assert (found["benchmark"], found["num_images"], found["holds"]) == ("evaluation", 8, holds)
    assert sum(found["parts_s"].values()) == pytest.approx(found["judging_s"], abs=1)
    assert any("segmenter" in text for text in found["parts_s"]), "masks are judged"
    assert any("classifier" in text for text in found["parts_s"]), "labels are judged"
    assert "the nearest training image of each" in found["parts_s"]
    said = [row[1] for row in found["tables"][0]["rows"] if row[0].startswith("judging takes less than")]
    assert said == ["holds" if holds else "DOES NOT HOLD"]
    assert found["beside"][0]["alternative"].startswith("scipy's sqrtm")


def test_both_frechet_distances_are_one() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(50, 6)), rng.normal(1, 2, size=(40, 6))
    assert evaluation.by_square_root(one, other) == pytest.approx(frechet_distance(one, other))
