"""Bundles of the built-in model to draw from, exported once."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.controlled_model import write_controlled_model
from data.hints import hint_colours
from data.manifest import PALETTE
from launch.training_data import Training
from models.base import ModelConfig
from models.saving import save_pipeline
from models.stable_diffusion import load_unet
from sampler.bundle import Bundle, open_bundle
from sampler.draw import Drawer
from tools.export.export import export

Changed = Callable[[Callable[[Path], None]], Path]
TRAINING = Training(
    databases=[
        {
            "database": "sim",
            "kind": "simulated",
            "title": "Simulated B-mode images",
            "licence": "Apache-2.0",
            "simulated": True,
            "images": 200,
            "mask_classes": ["left ventricle", "lesion"],
        }
    ],
    prompts=[
        {"prompt": f"simulated breast ultrasound, {label}", "label": label, "database": "sim"}
        for label in ("benign", "malignant", "normal")
    ],
    num_prompts=3,
    palette=list(PALETTE),
    bases=["tiny"],
)


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as stages leave it: in `plain`, and with a ControlNet in `control`."""
    folder = tmp_path_factory.mktemp("trained")
    base, record = ModelConfig(base="tiny"), {"stage": "breast", "steps": 1, "training": vars(TRAINING)}
    weights = {name: tensor.detach() for name, tensor in load_unet(base, torch.float32).named_parameters()}
    save_pipeline(base, weights, folder / "plain", record)
    write_controlled_model("tiny", folder / "control", {**record, "hint_colours": hint_colours(PALETTE)})
    return folder


@pytest.fixture(scope="session")
def bundle(trained: Path) -> Path:
    """A bundle of the built-in model, without ControlNet. Not to be changed."""
    out = trained / "plain-bundle"
    export(str(trained / "plain"), out, "onnx")
    return out


@pytest.fixture(scope="session")
def control_bundle(trained: Path) -> Path:
    """A bundle of the built-in model with a ControlNet. Not to be changed."""
    out = trained / "control-bundle"
    export(str(trained / "control"), out, "onnx")
    return out


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Changed:
    """Return a copy of the bundle after a change to it."""

    def copy(change: Callable[[Path], None]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(bundle, folder)
        change(folder)
        return folder

    return copy


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
