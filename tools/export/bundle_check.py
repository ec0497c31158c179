"""Whether the files of a bundle are what was exported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.shard_check import Checked
from sampler.manifest import FORMAT
from sampler.manifest import NAME as MANIFEST_FILE

AGAIN = "copy the bundle again, or export it again"


def holds_bundle(folder: Path) -> bool:
    """Return whether a folder is a bundle's: a checkpoint's manifest.json is another."""
    return (folder / MANIFEST_FILE).is_file() and (folder / "sampler").is_dir()


def check_bundle(folder: Path) -> Iterator[Checked]:
    """Yield each file that a bundle's manifest names, in their order, and what is wrong with it."""
    try:
        said = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        is_one = said["format"] == FORMAT
        files: dict[str, dict[str, Any]] = said["files"]
    except (ValueError, KeyError, TypeError):
        is_one, files = False, {}
    yield Checked(folder / MANIFEST_FILE, None if is_one else f"{folder / MANIFEST_FILE} is not of a bundle: {AGAIN}")
    for name, told in files.items():
        yield Checked(folder / name, _problem(folder / name, told))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _problem(path: Path, told: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path} is missing: {AGAIN}"
    if path.stat().st_size != told["bytes"]:
        return f"{path} has {path.stat().st_size} bytes, needed {told['bytes']}: {AGAIN}"
    return None if file_sha256(path) == told["sha256"] else f"{path} is not what was exported: {AGAIN}"
