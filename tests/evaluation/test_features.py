"""Features of a file: taken as its JSON says, and refused where they are none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.errors import DataError
from evaluation.features import torchscript_features

IMAGES = np.stack([np.full((40, 40), level, np.uint8) for level in (0, 51, 255)])


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


class Maps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 8)


class Flagged(nn.Module):
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        side = torch.full((images.shape[0], 1), float(images.shape[2]))
        return torch.cat([images.float().mean(dim=(2, 3)), side], dim=1) if return_features else side


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


def saved(network: nn.Module, folder: Path, **taken: object) -> Path:
    path = folder / "network.pt"
    torch.jit.script(network).save(str(path))
    if taken:
        (folder / "network.pt.json").write_text(json.dumps(taken), encoding="utf-8")
    return path


def test_ranges(tmp_path: Path) -> None:
    wanted = {
        "unit": [[0, 0, 0], [0.2, 0.2, 0.2], [1, 1, 1]],
        "symmetric": [[-1, -1, -1], [-0.6, -0.6, -0.6], [1, 1, 1]],
        "bytes": [[0, 0, 0], [51, 51, 51], [255, 255, 255]],
        "imagenet": [[-2.118, -2.036, -1.804], [-1.244, -1.143, -0.916], [2.249, 2.429, 2.640]],
    }
    for range_, values in wanted.items():
        found = torchscript_features(saved(Means(), tmp_path, range=range_)).of(IMAGES)
        assert found == pytest.approx(np.array(values), abs=1e-3)


def test_sizes_maps_and_flags(tmp_path: Path) -> None:
    features = torchscript_features(saved(Flagged(), tmp_path, side_pixels=24, range="bytes"))
    assert features.of(IMAGES)[:, 3].tolist() == [24, 24, 24]
    assert "network.pt (sha256 " in features.name
    assert "24 px, bytes" in features.name
    assert torchscript_features(saved(Flagged(), tmp_path, side_pixels=None)).of(IMAGES)[0, 3] == 40
    (tmp_path / "network.pt.json").unlink()
    assert torchscript_features(saved(Flagged(), tmp_path)).of(IMAGES)[0, 3] == 224
    maps = torchscript_features(saved(Maps(), tmp_path, range="unit")).of(IMAGES)
    assert maps == pytest.approx(np.array([[0] * 3, [0.2] * 3, [1] * 3]), abs=1e-6)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        torchscript_features(tmp_path / "none.pt")
    path = tmp_path / "weights.pt"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is no TorchScript file"):
        torchscript_features(path)
    with pytest.raises(DataError, match=r"gave tuple, needed features \[B, D\]"):
        torchscript_features(saved(Pair(), tmp_path)).of(IMAGES)
    with pytest.raises(DataError, match=r"network\.pt\.json: .*needed such as"):
        torchscript_features(saved(Means(), tmp_path, side=3))
