"""A bundle is used whole or not at all; each damage is told in one line."""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sampler.bundle import open_bundle
from sampler.errors import SamplerError
from tests.sampler.conftest import Changed


def refusal(path: Path) -> str:
    with pytest.raises(SamplerError) as refused, open_bundle(path):
        pass
    line = str(refused.value)
    assert "\n" not in line
    return line


def edited(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def zipped(folder: Path, archive: Path, root: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                opened.write(path, root + str(path.relative_to(folder)))
    return archive


@pytest.mark.parametrize("root", ["", "tiny/"])
def test_a_zip_is_the_folder_and_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    archive = zipped(bundle, tmp_path / "bundle.zip", root)
    with open_bundle(archive) as one, open_bundle(bundle) as other:
        assert one.manifest == other.manifest
        for name in one.manifest.files:
            assert one.path(name).read_bytes() == other.path(name).read_bytes()
    assert not any((tmp_path / "temporary").iterdir())


def test_one_changed_bit(changed: Changed) -> None:
    def flip(folder: Path) -> None:
        path = folder / "graphs" / "unet.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)

    line = refusal(changed(flip))
    assert "graphs/unet.safetensors is not what was exported (SHA-256 differs): copy the bundle again" in line


def test_a_file_cut_off_or_missing(changed: Changed) -> None:
    def cut(folder: Path) -> None:
        path = folder / "graphs" / "unet.onnx"
        path.write_bytes(path.read_bytes()[:-7])

    folder = changed(cut)
    assert re.search(r"unet.onnx has \d+ bytes, the manifest says \d+: copy the bundle again", refusal(folder))
    (folder / "graphs" / "unet.onnx").unlink()
    assert "unet.onnx is missing: copy the bundle again" in refusal(folder)


def test_a_damaged_zip_leaves_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    archive = zipped(bundle, tmp_path / "bundle.zip")
    with zipfile.ZipFile(archive) as opened:
        entry = opened.getinfo("graphs/unet.safetensors")
    content = bytearray(archive.read_bytes())
    content[entry.header_offset + entry.file_size // 2] ^= 1
    archive.write_bytes(content)
    assert "copy the bundle again" in refusal(archive)
    assert not any((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "C:/x", "a\\..\\b", ""])
def test_a_path_that_leads_outside(changed: Changed, bundle: Path, name: str) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    line = refusal(changed(edited(files={**files, name: {"bytes": 0, "sha256": "0"}})))
    assert "which is outside the bundle" in line


def test_a_link_that_leads_outside(changed: Changed, bundle: Path) -> None:
    def link(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").symlink_to(bundle / "tokenizer.json")

    assert "tokenizer.json is a link to outside the bundle" in refusal(changed(link))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (edited(format="other"), "is not of a bundle"),
        (edited(version=3), "has version 3, this sampler reads 2"),
        (edited(graphs={}), "lacks the graph 'text_encoder'"),
        (edited(prompts=None), "lacks 'prompts'"),
        (edited(latent={"channels": 4}), "lacks latent.pixels"),
        (edited(precision="fp8"), "has precision 'fp8'; known are fp32, fp16, int8"),
        (edited(files={}), "without its hash in 'files'"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json, so it is no bundle"),
    ],
)
def test_a_manifest_that_cannot_be_used(changed: Changed, change: Callable[[Path], None], line: str) -> None:
    assert line in refusal(changed(change))


def test_what_is_no_bundle_at_all(tmp_path: Path) -> None:
    assert "there is no" in refusal(tmp_path / "none")
    (tmp_path / "text").write_text("no bundle")
    assert "neither a folder nor a .zip" in refusal(tmp_path / "text")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert "has no manifest.json, so it is no bundle" in refusal(tmp_path / "empty.zip")
    shutil.rmtree(tmp_path)
