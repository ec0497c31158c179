"""What a benchmark prints can be read back whole, and a ratio says what it is of."""

import json

import pytest

from benchmarks.report import Beside, ReportTable, report


def test_the_last_line_has_all_that_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    table = ReportTable("a title", ("name", "figure"), [["one", "1.0"]])
    beside = Beside("a step", "1 ms", "plain torch 2 ms", 0.5, "time")
    report("some", [table], [beside], {"rows": [1.04]})
    *shown, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["benchmark"] == "some"
    assert found["rows"] == [1.04]
    assert found["tables"] == [{"title": "a title", "head": ["name", "figure"], "rows": [["one", "1.0"]]}]
    assert Beside(**found["beside"][0]) == beside
    assert "a step: 1 ms, plain torch 2 ms: 0.50 of the time" in shown
    assert any("one" in row and "1.0" in row for row in shown)
