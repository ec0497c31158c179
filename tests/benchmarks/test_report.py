"""What a benchmark prints can be read back whole, and a ratio says what it is of."""

import json

import pytest

from benchmarks.report import Beside, Limit, ReportTable, report


def test_the_last_line_has_all_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    table = ReportTable("a title", ("name", "figure"), [["one", "1.0"]])
    beside = Beside("a step", "1 ms", "plain torch 2 ms", 0.5, "time")
    assert report("some", [table], [beside], {"rows": [1.04]}) == 0
    *shown, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["benchmark"] == "some"
    assert found["rows"] == [1.04]
    assert found["tables"] == [{"title": "a title", "head": ["name", "figure"], "rows": [["one", "1.0"]]}]
    assert Beside(**found["beside"][0]) == beside
    assert "a step: 1 ms, plain torch 2 ms: 0.50 of the time" in shown
    assert any("one" in row and "1.0" in row for row in shown)


@pytest.mark.parametrize(("figure", "is_kept"), [(1.15, True), (1.16, False), (float("nan"), False)])
def test_a_limit_is_judged_in_what_is_shown_in_the_line_and_by_the_exit_code(
    figure: float, is_kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Limit("another", 1.0, 2.0)
    code = report("some", [], [], {}, [kept, Limit("ZeRO-1 to DDP", figure, 1.15)])
    *shown, line = capsys.readouterr().out.splitlines()
    assert shown[0] == "another: 1.000, at most 2.000: within the limit"
    assert shown[1].endswith(": within the limit" if is_kept else ": NOT within the limit")
    assert [limit["is_kept"] for limit in json.loads(line)["limits"]] == [True, is_kept]
    assert code == (0 if is_kept else 1)
