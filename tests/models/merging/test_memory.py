"""Memory of the whole command: it must grow neither with the number of models nor with what is copied beside them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from models.single_file import save_single_file
from tests.tiny_random_model import write_tiny_random_model

pytestmark = pytest.mark.slow

TENSOR_BYTES = 64 * 2**20
NUM_SOURCES = 8
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Pieces, buffers for hashes, and the record; one tensor more would be noticed.
BESIDE_BYTES = 60e6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Nine names of two models, of whose UNet there is one tensor of 64 MB alone."""
    folder = tmp_path_factory.mktemp("memory")
    for number in range(2):
        model = write_tiny_random_model(folder / str(number), number)
        generator = torch.Generator().manual_seed(number)
        state = {"conv_in.weight": torch.randn(TENSOR_BYTES // 4, generator=generator)}
        save_file(state, model / "unet" / WEIGHTS)
    return [str(folder / str(number % 2)) for number in range(NUM_SOURCES + 1)]


def peak_bytes(folder: Path, recipe: dict[str, Any]) -> int:
    """Return how far the memory rises in a process that merges into `folder`/out."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "tests.models.merging.merge_peak", str(path), str(folder / "out")]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(
    ("method", "num_tensors"),
    [("soup", 0), ("blocks", 0), ("slerp", 0), ("add-difference", 0), ("dare", 0), ("ties", 1)],
)
def test_the_peak_is_some_pieces_and_with_ties_one_tensor(
    folders: list[str], tmp_path: Path, method: str, num_tensors: int
) -> None:
    *sources, base = folders
    recipe: dict[str, Any] = {"method": method, "sources": sources[:2] if method == "slerp" else sources}
    if method in ("add-difference", "dare", "ties"):
        recipe["base"] = base
    if method == "blocks":
        recipe["blocks"] = {"conv_in": list(range(NUM_SOURCES))}
    peak = peak_bytes(tmp_path, recipe)
    # What is promised is twice a tensor and 200 MB; it is much less.
    assert peak < num_tensors * TENSOR_BYTES + BESIDE_BYTES < (num_tensors + 1) * TENSOR_BYTES
    assert num_tensors * TENSOR_BYTES < peak, "else this would say nothing"
    assert (tmp_path / "out" / "unet" / WEIGHTS).stat().st_size > TENSOR_BYTES


def test_a_single_file_first_is_unpacked_in_pieces(tmp_path: Path) -> None:
    """Its text encoder has six large matrices, which together would be noticed."""
    model = write_tiny_random_model(tmp_path / "model")
    config = json.loads((model / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    width = TENSOR_BYTES // 4 // config["hidden_size"]
    text_encoder = CLIPTextModel(CLIPTextConfig(**{**config, "num_hidden_layers": 3, "intermediate_size": width}))
    text_encoder.save_pretrained(model / "text_encoder")
    file = save_single_file(model, tmp_path / "model.safetensors")
    recipe = {"sources": [str(file), str(model)], "single_file_config": str(model)}
    peak = peak_bytes(tmp_path, recipe)
    assert 0 < peak < BESIDE_BYTES < TENSOR_BYTES
    found = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in text_encoder.state_dict().items())
