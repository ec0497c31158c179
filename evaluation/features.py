"""What sets of images are compared by: the features of a network, one trained here or one from a file.

`torch.jit.load` runs what the file holds. It is the one place where SonoShard executes a file that is not its own; that
is done with a path that the user gave for it, never with one from a configuration, a model or a folder of images.
"""

# N images, B images of a batch, D features, H W height and width

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn import functional

from data.errors import DataError
from evaluation.classifier import Classifier
from evaluation.realism import Scale

AT_ONCE = 16
# Of ImageNet's training images, as torchvision's models and RadImageNet's take them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """of: from grey images, uint8 [N, H, W], to features, float64 [N, D]. name: what they are, for the report."""

    name: str
    of: Callable[[NDArray[np.uint8]], NDArray[np.float64]]


def trained_features(classifier: Classifier, training_NHW: NDArray[np.uint8]) -> Features:
    """Return those of a classifier, standardised by the images that it was trained on: mean 0, deviation 1 or less."""
    scale = Scale(classifier.features(training_NHW), is_floored=True)
    name = f"a small classifier trained here on {len(training_NHW)} real images ({len(classifier.classes)} labels)"
    return Features(name, lambda images_NHW: scale(classifier.features(images_NHW)))


class InputConfig(BaseModel):
    """What a network in a file takes: the file NAME.json beside NAME."""

    model_config = ConfigDict(extra="forbid")

    side_pixels: int | None = Field(
        224, gt=0, description="Height and width that images are brought to. None: the network does it, or takes any."
    )
    range: Literal["imagenet", "unit", "symmetric", "bytes"] = Field(
        "imagenet",
        description="Of the three equal channels: imagenet: 0 to 1, less ImageNet's mean, by its deviation; unit: 0 to "
        "1; symmetric: -1 to 1; bytes: 0 to 255, uint8, such as StyleGAN's inception-2015-12-05.pt takes.",
    )


def torchscript_features(path: Path) -> Features:
    """Return the features of a TorchScript file: an Inception, RadImageNet or other network. It is executed: see above.

    It takes [B, 3, H, W] as NAME.json beside it says (see `InputConfig`; its defaults where there is none), and gives
    [B, D], or [B, D, h, w], of which the mean over h and w is taken. Where it has an argument `return_features`, as
    StyleGAN's have, that is set. Raises: DataError if it is none, or gives something else.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: give a TorchScript file, such as torch.jit.save writes")
    taken = _input_config(path.with_name(f"{path.name}.json"))
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is no TorchScript file ({reason}): write it by torch.jit.save") from error
    names = [argument.name for argument in network.forward.schema.arguments]
    flags = {"return_features": True} if "return_features" in names else {}

    @torch.no_grad()
    def of(images_NHW: NDArray[np.uint8]) -> NDArray[np.float64]:
        found = []
        for start in range(0, len(images_NHW), AT_ONCE):
            try:
                output = network(_taken(torch.from_numpy(images_NHW[start : start + AT_ONCE]), taken), **flags)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise DataError(
                    f"{path} does not take these images ({reason}): say in {path.name}.json beside it what it takes"
                ) from error
            if not isinstance(output, Tensor) or output.ndim not in (2, 4):
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise DataError(
                    f"{path} gave {shape}, needed features [B, D] or [B, D, h, w]: save it without its head"
                )
            found.append(output.mean(dim=tuple(range(2, output.ndim))) if output.ndim == 4 else output)
        return torch.cat(found).double().numpy()

    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    side = "any size" if taken.side_pixels is None else f"{taken.side_pixels} px"
    return Features(f"{path.name} (sha256 {digest}; {side}, {taken.range})", of)


def _input_config(path: Path) -> InputConfig:
    if not path.is_file():
        return InputConfig()
    try:
        return InputConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        reason = str(error).replace("\n", "; ")
        raise DataError(f'{path}: {reason}: needed such as {{"side_pixels": 224, "range": "imagenet"}}') from error


def _taken(images_BHW: Tensor, config: InputConfig) -> Tensor:
    """Return images as a network takes them, [B, 3, H, W]; made smaller with antialiasing, as Parmar et al. 2022 do.

    Source: arXiv:2104.11222.
    """
    images_B3HW = images_BHW[:, None].expand(-1, 3, -1, -1).float()
    if config.side_pixels is not None:
        side = (config.side_pixels, config.side_pixels)
        images_B3HW = functional.interpolate(images_B3HW, side, mode="bicubic", antialias=True).clamp(0, 255)
    if config.range == "bytes":
        return images_B3HW.round().byte()
    images_B3HW = images_B3HW / 255
    if config.range == "symmetric":
        return 2 * images_B3HW - 1
    if config.range == "imagenet":
        mean, spread = (torch.tensor(of)[:, None, None] for of in (IMAGENET_MEAN, IMAGENET_STD))
        return (images_B3HW - mean) / spread
    return images_B3HW
