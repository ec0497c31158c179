"""A random model in its three layouts, made once: a diffusers folder, the same in float16, a single file."""

import shutil
from pathlib import Path

import pytest

from models.base import ModelConfig
from models.single_file import save_single_file
from tests.tiny_random_model import write_tiny_random_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_random_model(tmp_path_factory.mktemp("model") / "tiny-random")


@pytest.fixture(scope="session")
def config(folder: Path) -> ModelConfig:
    return ModelConfig(base=str(folder))


@pytest.fixture(scope="session")
def half_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, stored as float16."""
    import torch
    from safetensors.torch import load_file, save_file

    half = tmp_path_factory.mktemp("half") / "tiny-half"
    shutil.copytree(folder, half)
    for file in half.glob("*/*.safetensors"):
        save_file({key: value.to(torch.float16) for key, value in load_file(file).items()}, file, {"format": "pt"})
    return half


@pytest.fixture(scope="session")
def single_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_single_file(folder, tmp_path_factory.mktemp("single") / "model.safetensors")


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    return copy
