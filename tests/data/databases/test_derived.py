"""A PNG is made once of the same sources, and anew of any others."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.databases import derived
from data.databases.derived import Derived, derived_png, first_fault
from data.errors import DataError
from data.images import decode


class Maker:
    """Makes a picture whose only value is the length of the source, and counts how often."""

    def __init__(self, source: Path) -> None:
        self.source, self.times = source, 0

    def __call__(self) -> NDArray[np.uint8]:
        self.times += 1
        return np.full((2, 3), len(self.source.read_bytes()), np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "root" / "source"
    path.parent.mkdir()
    path.write_bytes(b"four")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "made.png"


def value(path: Path) -> int:
    return int(np.asarray(decode(path)[0])[0, 0])


def test_it_is_made_once(source: Path, path: Path) -> None:
    make = Maker(source)
    assert derived_png(path, [source], make) == derived_png(path, [source], make) == Derived(path)
    assert (make.times, value(path)) == (1, 4)


def test_an_older_source_counts_too(source: Path, path: Path) -> None:
    derived_png(path, [source], Maker(source))
    # As `cp -p`, rsync and archives leave it.
    source.write_bytes(b"seven..")
    os.utime(source, ns=(1, 1))
    derived_png(path, [source], Maker(source))
    assert value(path) == 7


def test_another_date_alone_counts(source: Path, path: Path) -> None:
    make = Maker(source)
    derived_png(path, [source], make)
    os.utime(source, ns=(1, 1))
    derived_png(path, [source], make)
    assert make.times == 2


def test_another_root_counts_though_size_and_date_are_equal(source: Path, path: Path, tmp_path: Path) -> None:
    make = Maker(source)
    derived_png(path, [source], make)
    other = Path(shutil.copytree(source.parent, tmp_path / "other")) / "source"
    assert other.stat().st_mtime_ns == source.stat().st_mtime_ns
    derived_png(path, [other], make)
    assert make.times == 2


def test_a_source_more_counts(source: Path, path: Path) -> None:
    make = Maker(source)
    derived_png(path, [source], make)
    derived_png(path, [source, source], make)
    assert make.times == 2


def test_what_else_it_is_made_from_counts(source: Path, path: Path) -> None:
    make = Maker(source)
    for corner in (1.0, 1.0, 2.0):
        derived_png(path, [source], make, also_from=[3, [(corner, 5.0)]])
    assert make.times == 2


def test_another_version_counts(source: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker(source)
    derived_png(path, [source], make)
    monkeypatch.setattr(derived, "VERSION", derived.VERSION + 1)
    derived_png(path, [source], make)
    assert make.times == 2


@pytest.mark.parametrize("damage", ["no record", "half a record", "half a picture", "no picture", "no PNG"])
def test_a_damaged_one_is_made_anew(source: Path, path: Path, damage: str) -> None:
    derived_png(path, [source], Maker(source))
    (record,) = path.parent.glob("*.json")
    if damage in ("no record", "no picture"):
        (record if damage == "no record" else path).unlink()
    elif damage == "no PNG":
        path.write_bytes(b"\xff" * 99)
    else:
        half = record if damage == "half a record" else path
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    make = Maker(source)
    derived_png(path, [source], make)
    assert (make.times, value(path)) == (1, 4)


def test_equal_pictures_are_equal_files_wherever_their_sources_lie(source: Path, path: Path, tmp_path: Path) -> None:
    derived_png(path, [source], Maker(source))
    other = Path(shutil.copy(source, tmp_path / "elsewhere"))
    again = derived_png(tmp_path / "again.png", [other], Maker(other)).path
    assert again.read_bytes() == path.read_bytes()


def test_what_cannot_be_made_is_a_fault_and_leaves_no_older_picture(source: Path, path: Path) -> None:
    def refuse() -> NDArray[np.uint8]:
        raise DataError("source is no picture: copy it anew")

    good = derived_png(path, [source], Maker(source))
    source.write_bytes(b"<html>")
    bad = derived_png(path, [source], refuse)
    assert bad == Derived(path, "source is no picture: copy it anew")
    assert list(path.parent.iterdir()) == []
    assert first_fault(good, bad, Derived(path, "another")) == bad.fault
    assert first_fault(good) is first_fault() is None
    # Once it is mended, it is made.
    assert derived_png(path, [source], Maker(source)).fault is None


def test_a_source_that_is_gone_is_a_fault(source: Path, path: Path) -> None:
    source.unlink()
    assert derived_png(path, [source], Maker(source)).fault == f"{source} cannot be read: No such file or directory"
