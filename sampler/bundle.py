"""A bundle, opened: a folder or a .zip whose every byte was checked before any of it is used."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sampler import manifest as manifest_file
from sampler.errors import SamplerError
from sampler.manifest import Manifest
from sampler.threads import num_threads

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. folder: where its files lie."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return where a file that the manifest names lies."""
        assert name in self.manifest.files
        return self.folder / name


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Yield the bundle in a folder or a .zip, which is unpacked to a temporary folder that is removed afterwards.

    Raises: SamplerError if it is none, is of another version, or any file differs from what the manifest says of it.
    """
    if path.is_dir():
        yield _checked_folder(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        temporary = Path(tempfile.mkdtemp(prefix="sonoshard-bundle-"))
        try:
            yield _unpacked(path, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    elif path.exists():
        raise SamplerError(f"{path} is neither a folder nor a .zip; needed is a bundle, as `sonoshard export` writes")
    else:
        raise SamplerError(f"there is no {path}; needed is a bundle, as `sonoshard export` writes")


def _checked_folder(folder: Path) -> Bundle:
    where = folder / manifest_file.NAME
    if not where.is_file():
        raise SamplerError(f"{folder} has no {manifest_file.NAME}, so it is no bundle; export the model to it first")
    with where.open("rb") as opened:
        manifest = Manifest.parse(opened.read(manifest_file.MAX_BYTES), str(where))
    inside = folder.resolve()

    def check(name: str) -> None:
        path = folder / name
        if not path.resolve().is_relative_to(inside):
            raise SamplerError(f"{path} is a link to outside the bundle; put the file itself there")
        if not path.is_file():
            raise SamplerError(f"{path} is missing: copy the bundle again")
        _refuse_size(path.stat().st_size, manifest, name, folder)
        with path.open("rb") as opened:
            _copy_checked(opened, None, manifest, name, folder)

    # The largest first, so that the last thread does not begin with it. Hashing leaves the interpreter to others.
    names = sorted(manifest.files, key=lambda name: -int(manifest.files[name]["bytes"]))
    with ThreadPoolExecutor(num_threads()) as threads:
        for _ in threads.map(check, names):
            pass
    return Bundle(folder, manifest)


def _unpacked(archive: Path, folder: Path) -> Bundle:
    """Return the bundle in a .zip, of which only what the manifest names is unpacked, checked on the way."""
    try:
        with zipfile.ZipFile(archive) as opened:
            found = [name for name in opened.namelist() if name.rpartition("/")[2] == manifest_file.NAME]
            above = [name.removesuffix(manifest_file.NAME) for name in found if name.count("/") <= 1]
            if not above:
                raise SamplerError(
                    f"{archive} has no {manifest_file.NAME}, so it is no bundle; zip the bundle's folder"
                )
            root = min(above, key=len)
            with opened.open(root + manifest_file.NAME) as source:
                content = source.read(manifest_file.MAX_BYTES)
            manifest = Manifest.parse(content, f"{archive}/{root}{manifest_file.NAME}")
            (folder / manifest_file.NAME).write_bytes(content)
            entries = {entry.filename: entry for entry in opened.infolist()}
            for name in manifest.files:
                entry = entries.get(root + name)
                if entry is None:
                    raise SamplerError(f"{archive} lacks {name}: copy the bundle again")
                _refuse_size(entry.file_size, manifest, name, archive)
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as source, path.open("xb") as target:
                    _copy_checked(source, target, manifest, name, archive)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last where it is encrypted
        raise SamplerError(f"{archive} is damaged ({error}): copy the bundle again") from error
    return Bundle(folder, manifest)


def _refuse_size(found: int, manifest: Manifest, name: str, where: Path) -> None:
    expected = int(manifest.files[name]["bytes"])
    if found != expected:
        raise SamplerError(f"{where}/{name} has {found} bytes, the manifest says {expected}: copy the bundle again")


def _copy_checked(source: BinaryIO, target: BinaryIO | None, manifest: Manifest, name: str, where: Path) -> None:
    """Read `source` to its end, into `target` if there is one. Raises: SamplerError if its SHA-256 is another one."""
    sha256 = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        sha256.update(chunk)
        if target is not None:
            target.write(chunk)
    if sha256.hexdigest() != manifest.files[name]["sha256"]:
        raise SamplerError(f"{where}/{name} is not what was exported (SHA-256 differs): copy the bundle again")
