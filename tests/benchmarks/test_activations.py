"""What the benchmark of activations tells, of figures for which nothing ran."""

import json
import sys

import pytest

from benchmarks import activations
from benchmarks.activations import DEFAULT, Case, Measured


@pytest.mark.parametrize(
    ("arguments", "names"), [([], ["70.5M parameters", "built-in model"]), (["--no-compile"], ["70.5M parameters"])]
)
def test_on_a_cpu_the_small_network_alone_is_compiled(
    arguments: list[str], names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(case: Case, _: object) -> dict[str, Measured]:
        return {name: Measured(1.0, 1000, 1000, 0.0) for name in case.settings}

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(activations, "measure", measured)
    monkeypatch.setattr(sys, "argv", ["activations", *arguments])
    assert activations.main() == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(told["rows"]) == names
    assert [len(table["rows"]) for table in told["tables"]] == [4, 2][: len(names)]
    assert told["rows"].get("built-in model", {"compile": True}).keys() >= {"compile"}
    assert told["rows"]["70.5M parameters"].keys() >= {DEFAULT, "dtype", "micro_size"}
    assert len(told["beside"]) == 4, "there is no prediction of what is compiled"


def test_another_gradient_than_the_defaults_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(case: Case, _: object) -> dict[str, Measured]:
        return {name: Measured(1.0, 1000, 1000, 0.01 * (name == "channels-last")) for name in case.settings}

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(activations, "measure", measured)
    monkeypatch.setattr(sys, "argv", ["activations"])
    assert activations.main() == 1
