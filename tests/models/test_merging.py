"""The mean of several models' UNets."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import ModelError
from models.merging import averaged_unet
from tests.tiny_random_model import write_tiny_random_model

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("merging")
    return [write_tiny_random_model(folder / str(seed), seed) for seed in range(3)]


def test_it_is_the_weighted_mean_of_every_parameter(folders: list[Path]) -> None:
    weights = dict(zip(map(str, folders), (3.0, 1.0, 4.0), strict=True))
    states = [load_file(folder / WEIGHTS) for folder in folders]
    averaged = averaged_unet(weights)
    assert averaged.keys() == states[0].keys()
    for name, value in averaged.items():
        expected = sum(share * state[name].double() for share, state in zip((3 / 8, 1 / 8, 4 / 8), states, strict=True))
        # float32 sums of three.
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_one_model_alone_is_itself(folders: list[Path]) -> None:
    averaged = averaged_unet({str(folders[1]): 0.3})
    state = load_file(folders[1] / WEIGHTS)
    assert all(torch.equal(averaged[name], state[name]) for name in state)


def test_models_that_are_no_kin_are_refused(folders: list[Path], tmp_path: Path) -> None:
    other = write_tiny_random_model(tmp_path / "other", 3)
    state = load_file(other / WEIGHTS)
    first = sorted(state)[0]
    for damage in ({first: state[first][None]}, {f"more.{first}": state[first].clone()}):
        save_file(state | damage, other / WEIGHTS)
        with pytest.raises(ModelError, match=f"differ in.*{first}"):
            averaged_unet({str(folders[0]): 1.0, str(other): 1.0})
