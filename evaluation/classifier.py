"""A small network that tells labels apart: trained on real images, it judges generated ones and gives their features.

It is no judge of patients: a few hundred images and a minute of one core make it.
"""

# N images, B images of a batch, K classes, C channels, D features, H W height and width

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from data.errors import DataError
from evaluation.fit import fit, network_input
from evaluation.jitter import MIDDLE_GREY, jittered

# As the segmenter: the coarsest level has about this many pixels a side, so that a unit sees all of an image.
COARSEST_PIXELS = 8
MIN_PIXELS = 32
LARGE_PIXELS = 128
MAX_WIDTHS = 2  # the coarser levels, in widths of the first; the features are twice as many
GROUPS = 8
PREDICTED_AT_ONCE = 32


class ClassifierConfig(BaseModel):
    """How the classifier is trained. Arms of a comparison have the same `steps`, whatever their number of images."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(300, gt=0, description="Optimizer steps.")
    batch_size: int = Field(16, gt=0, description="Images of a step.")
    lr: float = Field(1e-2, gt=0, description="Highest learning rate of AdamW; it rises, then falls as a cosine.")
    weight_decay: float = Field(5e-2, ge=0, description="AdamW's decoupled weight decay.")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="Share of a label spread over all classes.")
    width: int = Field(
        16, gt=0, multiple_of=GROUPS, description="Channels of the finest level; coarser have twice that."
    )
    augment: bool = Field(
        True, description="Whether images are mirrored, shifted, zoomed, blurred and changed in grey each time."
    )
    seed: int = Field(0, ge=0, description="Of the first weights, the order of the images and their augmentation.")


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1 one, with group normalisation: batches mix organs.

    Source: He et al. 2016 (arXiv:1512.03385); Wu & He 2018 (arXiv:1803.08494).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, outputs) for _ in range(2))
        self.beside = nn.Conv2d(inputs, outputs, 1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        inner = functional.relu(self.norms[0](self.first(features_BCHW)))
        return functional.relu(self.norms[1](self.second(inner)) + self.beside(features_BCHW))


class _Network(nn.Module):
    """Features [B, D] of images [B, 1, H, W] in [0, 1], and their logits [B, K].

    The finest level works on 4 x 4 pixels at once (2 x 2 of small images): Shi et al. 2016 (arXiv:1609.05158). Features
    are means and maxima over the image: with means alone, a small lesion was found in 60 % where it now is in 80 %.
    """

    def __init__(self, num_classes: int, width: int, side: int) -> None:
        super().__init__()
        self.at_once = 4 if side >= LARGE_PIXELS else 2
        num_levels = max(2, 1 + round(math.log2(side / self.at_once / COARSEST_PIXELS)))
        widths = [width, *(num_levels - 1) * [MAX_WIDTHS * width]]
        self.blocks = nn.ModuleList(_Block(inputs, outputs) for inputs, outputs in pairwise([self.at_once**2, *widths]))
        self.head = nn.Linear(2 * widths[-1], num_classes)

    def features(self, images_B1HW: Tensor) -> Tensor:
        height, width = images_B1HW.shape[2:]
        beyond = (0, -width % self.at_once, 0, -height % self.at_once)
        padded = functional.pad(images_B1HW - MIDDLE_GREY, beyond, mode="replicate")
        features = functional.pixel_unshuffle(padded, self.at_once)
        for number, block in enumerate(self.blocks):
            features = block(functional.max_pool2d(features, 2) if number else features)
        return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)

    def forward(self, images_B1HW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(images_B1HW))
        return logits_BK


class Classifier:
    """A trained network. classes: the labels that it was shown, sorted."""

    def __init__(self, network: _Network, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._network = network.eval()

    @torch.no_grad()
    def probabilities(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the probabilities of `classes`, [N, K], of grey images, uint8: means over each and its mirror image.

        `masked_images.grey` makes colours grey.
        """
        found = [
            self._network(images_B1HW).softmax(dim=1) + self._network(images_B1HW.flip(-1)).softmax(dim=1)
            for images_B1HW in _batches(images_NHW)
        ]
        return np.concatenate([np.empty((0, len(self.classes))), *((each.double() / 2).numpy() for each in found)])

    @torch.no_grad()
    def features(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return what the last layer sees of grey images, uint8: means and maxima over the image, [N, D], 0 or more."""
        num_features = self._network.head.in_features
        found = [self._network.features(images_B1HW).double().numpy() for images_B1HW in _batches(images_NHW)]
        return np.concatenate([np.empty((0, num_features)), *found])


def train_classifier(images_NHW: NDArray[np.uint8], labels: Sequence[str], config: ClassifierConfig) -> Classifier:
    """Return a classifier trained on grey images, uint8 [N, H, W], 32 px a side or more, and a label of each.

    Every image is taken as often as any other, to one. The same arguments give the same weights, to rounding where the
    number of threads differs; the caller's random numbers are left alone.
    Raises: DataError if there is not a label for every image, images are too small, or all have one label.
    """
    if images_NHW.ndim != 3 or len(images_NHW) != len(labels):
        raise DataError(
            f"images have shape {images_NHW.shape} and there are {len(labels)} labels, needed grey images [N, H, W] "
            "and a label of each"
        )
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise DataError(
            f"all {len(labels)} images have the label {', '.join(classes) or '(none)'}, needed two labels to tell "
            "apart: add a database, or one that has labels"
        )
    if min(images_NHW.shape[1:]) < MIN_PIXELS:
        raise DataError(f"images have shape {images_NHW.shape[1:]}, needed {MIN_PIXELS} pixels or more a side")
    images = torch.from_numpy(images_NHW)
    numbers = torch.from_numpy(np.searchsorted(classes, labels))
    network = _network(len(classes), max(images_NHW.shape[1:]), config)

    def loss_of(chosen: Tensor, generator: torch.Generator) -> Tensor:
        images_BHW = images[chosen].float() / 255
        if config.augment:
            images_BHW, _ = jittered(images_BHW, torch.zeros_like(images_BHW), generator)
        logits_BK: Tensor = network(network_input(images_BHW))
        return functional.cross_entropy(logits_BK, numbers[chosen], label_smoothing=config.label_smoothing)

    fit(network, len(images), loss_of, config)
    return Classifier(network, classes)


def _network(num_classes: int, side: int, config: ClassifierConfig) -> _Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = _Network(num_classes, config.width, side)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _batches(images_NHW: NDArray[np.uint8]) -> list[Tensor]:
    starts = range(0, len(images_NHW), PREDICTED_AT_ONCE)
    return [network_input(torch.from_numpy(images_NHW[at : at + PREDICTED_AT_ONCE]).float() / 255) for at in starts]
