"""Imports run one way: models, data, distributed <- launch <- tools, evaluation; the sampler stands alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each package, and the packages of ours that it may import.
MAY_IMPORT = {
    "data": {"data"},
    "models": {"models"},
    "distributed": {"distributed"},
    "sampler": {"sampler"},
    "launch": {"launch", "data", "models", "distributed"},
    "evaluation": {"evaluation", "launch", "data", "models", "distributed"},
    "tools": {"tools", "sampler", "evaluation", "launch", "data", "models", "distributed"},
}
# The front door names the commands of the packages above it, and imports them only when they are called.
FRONT_DOOR = ROOT / "launch" / "commands"
SOURCES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} & MAY_IMPORT.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    allowed = set(MAY_IMPORT) if path.parent == FRONT_DOOR else MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    assert imported_packages(path) <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_named_for_what_it_holds(path: Path) -> None:
    assert path.stem not in {"util", "utils", "helper", "helpers", "misc", "common"}
    assert "-" not in path.stem, "a hyphen cannot be imported"
