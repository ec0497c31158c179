"""A small U-Net that finds masks in images: trained on real ones, it judges whether generated ones follow theirs."""

# N images, B images of a batch, K classes, C channels, H W height and width

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from data.errors import DataError
from evaluation.fit import fit, network_input
from evaluation.jitter import MIDDLE_GREY, jittered

# The coarsest level of the network has about this many pixels a side, whatever the images' size: it sees all of one.
COARSEST_PIXELS = 8
MAX_WIDTHS = 4  # the widest level, in widths of the first
GROUPS = 8
PREDICTED_AT_ONCE = 16


class SegmenterConfig(BaseModel):
    """How the segmenter is trained.

    One a database, or one for several: at the same number of steps an organ learns as many as there are images of it.
    """

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(350, gt=0, description="Optimizer steps.")
    batch_size: int = Field(16, gt=0, description="Images of a step.")
    lr: float = Field(4e-3, gt=0, description="Highest learning rate of AdamW; it rises, then falls as a cosine.")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled weight decay.")
    width: int = Field(16, gt=0, multiple_of=GROUPS, description="Channels of the finest level; coarser have up to 4x.")
    pixels_at_once: Literal[2, 4] = Field(
        2,
        description="A side, in pixels, of the squares that the finest level works on; 4 takes 0.4 of the time, and the"
        " outlines of thin classes are found less well.",
    )
    augment: bool = Field(
        True, description="Whether images are mirrored, shifted, zoomed, blurred and changed in grey each time."
    )
    seed: int = Field(0, ge=0, description="Of the first weights, the order of the images and their augmentation.")


class _Block(nn.Sequential):
    """Two 3 x 3 convolutions, each with group normalisation: batches mix organs, and one image has no batch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                nn.GroupNorm(GROUPS, outputs),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class _UNet(nn.Module):
    """Logits [B, K, H, W] of images [B, 1, H, W] in [0, 1].

    Its finest level works on 2 x 2 pixels at once (or 4 x 4), and skips are added, not concatenated: a third of the
    time of the original. Sources: Ronneberger et al. 2015 (arXiv:1505.04597); skips, Chaurasia & Culurciello 2017
    (arXiv:1707.03718); pixels unshuffled, Shi et al. 2016 (arXiv:1609.05158).
    """

    def __init__(self, num_classes: int, width: int, num_levels: int, at_once: int) -> None:
        super().__init__()
        widths = [width * min(2**level, MAX_WIDTHS) for level in range(num_levels)]
        self.at_once, self.multiple = at_once, at_once * 2 ** (num_levels - 1)
        self.down = nn.ModuleList(_Block(inputs, outputs) for inputs, outputs in pairwise([at_once**2, *widths]))
        self.project = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(_Block(fine, fine) for fine in widths[:-1])
        self.head = nn.Conv2d(width, at_once**2 * num_classes, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        height, width = images_BCHW.shape[2:]
        beyond = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = functional.pad(images_BCHW - MIDDLE_GREY, beyond, mode="replicate")
        features = functional.pixel_unshuffle(padded, self.at_once)
        skips: list[Tensor] = []
        for number, block in enumerate(self.down):
            features = block(functional.max_pool2d(features, 2) if number else features)
            skips.append(features)
        for level in reversed(range(len(self.up))):
            upsampled = functional.interpolate(self.project[level](features), scale_factor=2, mode="nearest")
            features = self.up[level](upsampled + skips[level])
        return functional.pixel_shuffle(self.head(features), self.at_once)[..., :height, :width]


def segmentation_loss(logits_BKHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Return cross-entropy minus the mean logarithm of the soft Dice coefficients, a scalar.

    Dice is of the batch as a whole, so that an image without a class is no special case, for every class but the
    background, K 0. The logarithm pulls the harder the less of a class is found: with 1 - Dice, small classes (breast
    lesion, left atrium: 1.8 and 0.8 % of the pixels) were given up in the first steps and never came back.
    Sources: soft Dice, Milletari et al. 2016 (arXiv:1606.04797), with plain sums below the line and 1 added on both
    sides; its sum with cross-entropy, Isensee et al. 2018 (arXiv:1809.10486); the logarithm, Wong et al. 2018
    (arXiv:1809.00076).
    """
    log_BKHW = logits_BKHW.log_softmax(dim=1)
    entropy = functional.nll_loss(log_BKHW, labels_BHW)
    numbers_KHW = torch.arange(1, logits_BKHW.shape[1])[:, None, None]
    wanted, found = (labels_BHW[:, None] == numbers_KHW).float(), log_BKHW[:, 1:].exp()
    over = (0, 2, 3)
    dice_K = (2 * (found * wanted).sum(over) + 1) / (found.sum(over) + wanted.sum(over) + 1)
    return entropy - dice_K.log().mean()


class Segmenter:
    """A trained network.

    classes: names of class numbers, as in the manifest's palette. numbers: those that the training masks had, the
    background's 0 first; it predicts no others.
    """

    def __init__(self, network: nn.Module, classes: Sequence[str], numbers: NDArray[np.uint8]) -> None:
        self.classes = tuple(classes)
        self.numbers = numbers
        self._network = network.eval()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes that it predicts, without the background."""
        return tuple(self.classes[number] for number in self.numbers[1:])

    @torch.no_grad()
    def predict(self, images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return class numbers [N, H, W] uint8 of grey images, uint8: of each pixel the most probable one.

        Probabilities are the mean over an image and its mirror image. `masked_images.grey` makes colours grey.
        """
        predicted_NHW = np.empty_like(images_NHW)
        for start in range(0, len(images_NHW), PREDICTED_AT_ONCE):
            batch = slice(start, start + PREDICTED_AT_ONCE)
            images_B1HW = network_input(torch.from_numpy(images_NHW[batch]).float() / 255)
            both = (self._network(images_B1HW), self._network(images_B1HW.flip(-1)).flip(-1))
            probabilities_BKHW = both[0].softmax(dim=1) + both[1].softmax(dim=1)
            predicted_NHW[batch] = self.numbers[probabilities_BKHW.argmax(dim=1).numpy()]
        return predicted_NHW


def train_segmenter(
    images_NHW: NDArray[np.uint8],
    class_numbers_NHW: NDArray[np.uint8],
    classes: Sequence[str],
    config: SegmenterConfig,
) -> Segmenter:
    """Return a segmenter trained on grey images, uint8 [N, H, W], and their class numbers.

    classes: names by number, as in data.manifest.PALETTE; only those present become channels. The same arguments give
    the same weights, to rounding where the number of threads differs.
    Raises: DataError if shapes differ, a number has no name, or there is nothing but background.
    """
    if images_NHW.ndim != 3 or images_NHW.shape != class_numbers_NHW.shape:
        raise DataError(
            f"images have shape {images_NHW.shape} and masks {class_numbers_NHW.shape}, needed the same [N, H, W]: "
            "make the images grey"
        )
    numbers = np.union1d([0], class_numbers_NHW).astype(np.uint8)
    if len(numbers) < 2:
        raise DataError(f"all {len(images_NHW)} masks are empty, needed some that are not: train on more images")
    if numbers[-1] >= len(classes):
        raise DataError(f"masks have class number {numbers[-1]}, needed less than {len(classes)}, one for each name")
    images = torch.from_numpy(images_NHW)
    labels = torch.from_numpy(np.searchsorted(numbers, class_numbers_NHW))
    network = _network(len(numbers), max(images.shape[1:]), config)

    def loss_of(chosen: Tensor, generator: torch.Generator) -> Tensor:
        images_BHW, labels_BHW = images[chosen].float() / 255, labels[chosen]
        if config.augment:
            images_BHW, labels_BHW = jittered(images_BHW, labels_BHW, generator)
        return segmentation_loss(network(network_input(images_BHW)), labels_BHW)

    fit(network, len(images), loss_of, config)
    return Segmenter(network, classes, numbers)


def _network(num_classes: int, side: int, config: SegmenterConfig) -> _UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        num_levels = max(2, 1 + round(math.log2(side / config.pixels_at_once / COARSEST_PIXELS)))
        network = _UNet(num_classes, config.width, num_levels, config.pixels_at_once)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
