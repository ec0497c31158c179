"""The page of all benchmarks: each is on it, one that fails hides no other, and it names no path of the machine."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import __main__ as all_benchmarks
from benchmarks.__main__ import GPU_PARTS, PAGE, PARTS, Part, facts, main

ROOT = Path(__file__).parent.parent.parent
# They measure nothing, or are run by others.
NO_PARTS = {"__main__", "evaluation", "gpu_table", "memory_table", "scaling", "diffusers_example"}
GOOD = """
import json, sys
print("as it goes")
table = {"title": "a title", "head": ["name", "figure"], "rows": [["one", " ".join(sys.argv[1:])]]}
beside = {"what": "a step", "ours": "1 ms", "alternative": "plain 2 ms", "ratio": 0.5, "kind": "time"}
limits = [{"what": "MB", "figure": 1.5, "limit": 2.0, "is_kept": True}]
print(json.dumps({"benchmark": "good", "tables": [table], "beside": [beside], "limits": limits}))
"""
SLOW = GOOD.replace("1.5", "3").replace("True}]", "False}]") + "raise SystemExit(1)"


class Fake(Part):
    """A part that stands somewhere else."""

    @property
    def module(self) -> str:
        return self.name

    @property
    def first_line(self) -> str:
        return f"Measures {self.name}."


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    codes = {"good": GOOD, "bad": "raise SystemExit(3)", "silent": "print('nothing')", "late": SLOW}
    for name, code in codes.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    parts = tuple(
        Fake(name, name.title(), ("--full", "a b"), ("--small",)) for name in ("good", "bad", "silent", "late")
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(all_benchmarks, "PARTS", parts)
    monkeypatch.setattr(all_benchmarks, "facts", lambda: {"hardware": "a machine"})
    monkeypatch.setattr(all_benchmarks, "PAGE", tmp_path / "all.md")
    return tmp_path


def test_every_program_is_a_part() -> None:
    programs = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert {part.name for part in (*PARTS, *GPU_PARTS)} == programs - NO_PARTS
    for part in (*PARTS, *GPU_PARTS):
        assert part.first_line.endswith("."), f"{part.name}: its file says in one line what it measures"


def test_one_that_fails_is_told_and_the_others_go_on(fakes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    page = (fakes / "all.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == ["Side by side", "Limits", "Good", "Bad", "Silent", "Late"]
    assert "**bad, silent failed**" in page
    assert "**late**: a limit is not kept, see below." in page
    assert "**It does not keep a limit.**" in page
    assert "**It ended with exit code 3.**" in page
    assert "**It reported nothing.**" in page
    assert page.count("| a step | 1 ms | plain 2 ms | 0.50 of the time |") == 2
    assert page.count("| one | --full a b |") == 2
    assert "| MB | 1.500 | 2.000 | yes |\n| MB | 3.000 | 2.000 | **no** |\n" in page
    assert "    python -m late --full 'a b'\n" in page
    assert "Written by `make bench`" in page
    assert "bad: ended with exit code 3" in capfd.readouterr().out


def test_a_part_of_them_writes_no_page_unless_it_is_named(fakes: Path) -> None:
    assert main(["--quick", "--only", "good"]) == 0
    assert not (fakes / "all.md").exists()
    assert main(["--quick", "--only", "good", "--page", str(fakes / "own.md")]) == 0
    page = (fakes / "own.md").read_text(encoding="utf-8")
    assert "| one | --small |" in page
    assert "Written by `python -m benchmarks --quick --only good`" in page
    assert str(fakes) not in page, "where it was written is nobody's business"


def test_one_that_is_not_among_them_is_refused(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "gpu"])
    assert "none of gpu is among those without --gpu" in capsys.readouterr().err


def test_facts_say_what_a_figure_depends_on_and_not_where_it_was() -> None:
    found = facts()
    assert list(found) == ["date", "hardware", "commit", "versions"]
    assert "torch" in found["versions"]
    assert "onnxruntime" in found["versions"]
    assert str(ROOT) not in json.dumps(found)


def test_the_page_in_docs_is_that_of_all_parts() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings == ["Side by side", "Limits", *(part.heading for part in PARTS)], "run make bench"
    assert "failed" not in page
