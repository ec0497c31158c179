"""Imports run one way: models, data, distributed <- launch <- evaluation, tools <- benchmarks; sampler stands alone.

No program reads or writes pickles, which may run any code when they are read.
"""

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
    "benchmarks": {"benchmarks", "tools", "sampler", "evaluation", "launch", "data", "models", "distributed"},
}
# The front door names the commands of the packages above it, and imports them only when they are called.
FRONT_DOOR = ROOT / "launch" / "commands"
SOURCES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} & {*MAY_IMPORT, "tests"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    allowed = set(MAY_IMPORT) if path.parent == FRONT_DOOR else MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    assert imported_packages(path) <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_named_for_what_it_holds(path: Path) -> None:
    assert path.stem not in {"util", "utils", "helper", "helpers", "misc", "common"}
    assert "-" not in path.stem, "a hyphen cannot be imported"


PICKLES = {"pickle", "dill", "cloudpickle"}


def pickles_of(tree: ast.AST) -> list[str]:
    """Return what in a program reads or writes pickles."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names if alias.name.split(".")[0] in PICKLES]
            case ast.ImportFrom(module=str(module), names=names):
                found += [module] if module.split(".")[0] in PICKLES else []
                calls = {f"{module}.{alias.name}" for alias in names}
                found += sorted(calls & {"torch.load", "torch.save"})  # the look at calls would not see them
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name), keywords=keywords):
                told = {word.arg: word.value for word in keywords}
                is_safe = isinstance(only := told.get("weights_only"), ast.Constant) and only.value is True
                if module == "torch" and (name == "save" or (name == "load" and not is_safe)):
                    found.append(f"torch.{name}")
                if name == "load" and not is_false(told.get("allow_pickle")):
                    found.append(f"{module}.load")
    return found


def is_false(node: ast.expr | None) -> bool:
    """Return whether an argument is left out or written as False."""
    return node is None or (isinstance(node, ast.Constant) and node.value is False)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reads_or_writes_pickles(path: Path) -> None:
    assert pickles_of(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from dill import loads", ["dill"]),
        ("import cloudpickle.compat as c", ["cloudpickle.compat"]),
        ("from torch import load", ["torch.load"]),
        ("torch.save(state, path)", ["torch.save"]),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("np.load(path, allow_pickle=may)", ["np.load"]),
        ("np.load(path, allow_pickle=False)", []),
        ("np.load(path)", []),
        ("json.load(file)", []),
    ],
)
def test_a_pickle_would_be_found(program: str, found: list[str]) -> None:
    assert pickles_of(ast.parse(program)) == found
