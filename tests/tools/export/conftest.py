"""A small random model with a ControlNet, and its bundles in each precision, made once."""

from pathlib import Path

import pytest

from benchmarks.controlled_model import write_controlled_model
from data.hints import hint_colours
from launch.training_data import Training
from tests.tiny_random_model import write_tiny_random_model
from tools.export.export import export

PALETTE = ["background", "lesion", "left ventricle"]
TRAINING = Training(
    databases=[
        {
            "database": "sim",
            "kind": "simulated",
            "title": "Simulated B-mode images",
            "licence": "Apache-2.0",
            "simulated": True,
            "images": 20,
            "mask_classes": ["lesion"],
        }
    ],
    prompts=[{"prompt": f"breast tumor, {label}", "label": label, "database": "sim"} for label in ("benign", "other")],
    num_prompts=2,
    palette=PALETTE,
    bases=["tiny"],
)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of which nothing is recorded."""
    return write_tiny_random_model(tmp_path_factory.mktemp("export") / "plain")


@pytest.fixture(scope="session")
def controlled(plain: Path) -> Path:
    """The same with a ControlNet that changes something, as a stage leaves it."""
    record = {
        "stage": "masks",
        "steps": 7,
        "hint_colours": hint_colours(PALETTE),
        "validation_loss": 0.25,
        "training": vars(TRAINING),
    }
    return write_controlled_model(str(plain), plain.with_name("controlled"), record)


@pytest.fixture(scope="session")
def bundle(controlled: Path) -> Path:
    out = controlled.parent / "bundle"
    export(str(controlled), out, "onnx")
    return out


@pytest.fixture(scope="session")
def half_bundle(controlled: Path) -> Path:
    out = controlled.parent / "bundle-fp16"
    export(str(controlled), out, "onnx", precision="fp16")
    return out


@pytest.fixture(scope="session")
def byte_bundle(controlled: Path) -> Path:
    out = controlled.parent / "bundle-int8"
    export(str(controlled), out, "onnx", precision="int8")
    return out
