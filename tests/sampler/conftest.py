"""Bundles to draw from: those in SONOSHARD_TEST_BUNDLES (folders `tiny` and `tiny-control`)."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sampler
from sampler.bundle import Bundle, open_bundle
from sampler.draw import Drawer

Changed = Callable[[Callable[[Path], None]], Path]
Assembled = Callable[[str], Path]
SOURCE = Path(sampler.__file__).parent


def assembled(source: Path, folder: Path) -> Path:
    """Copy a bundle with this checkout's sampler in it, as the export writes it."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("sampler", "sample.py"))
    shutil.copytree(SOURCE, folder / "sampler", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SOURCE / "launcher.py", folder / "sample.py")
    rewrite_hashes(folder)
    return folder


def rewrite_hashes(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _source(name: str) -> Path:
    folder = Path(os.environ.get("SONOSHARD_TEST_BUNDLES", "runs/test-bundles")) / name
    if not folder.is_dir():
        pytest.skip(f"there is no bundle {folder}")
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the built-in model, without ControlNet. Not to be changed."""
    return assembled(_source("tiny"), tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def control_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the built-in model with a ControlNet. Not to be changed."""
    return assembled(_source("tiny-control"), tmp_path_factory.mktemp("control") / "tiny-control")


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Changed:
    """Return a copy of the bundle after a change to it."""

    def copy(change: Callable[[Path], None]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(bundle, folder)
        change(folder)
        return folder

    return copy


@pytest.fixture
def assembled_as(tmp_path: Path) -> Assembled:
    """Return a bundle by its name."""
    return lambda name: assembled(_source(name), tmp_path / name)


@pytest.fixture(scope="session")
def opened(bundle: Path) -> Iterator[Bundle]:
    with open_bundle(bundle) as one:
        yield one


@pytest.fixture(scope="session")
def drawer(opened: Bundle) -> Drawer:
    return Drawer(opened)


@pytest.fixture(scope="session")
def control_drawer(control_bundle: Path) -> Iterator[Drawer]:
    with open_bundle(control_bundle) as one:
        yield Drawer(one)
