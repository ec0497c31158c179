"""What varies each time the segmenter sees a real image, so that it reads generated ones too."""

# B images, H W height and width, K taps of a kernel

import torch
from torch import Tensor
from torch.nn import functional

# Chosen on simulated images: wide enough that what the VAE of the built-in model decodes is found as well.
MAX_ZOOM = 0.12  # of a side, smaller or larger
MAX_SHIFT = 0.05  # of a side
MAX_BLUR_PIXELS = 1.2  # sigma; half of the images stay sharp
MAX_GRAIN = 0.3  # standard deviation, in proportion to the grey level plus GRAIN_OF_BLACK; half of the images get none
GRAIN_OF_BLACK = 0.3
MAX_GRAIN_BLUR_PIXELS = 1.0
MAX_LOG_GAMMA, MAX_LOG_CONTRAST, MAX_BRIGHTNESS = 0.3, 0.25, 0.1
KERNEL_REACH = 3
MIDDLE_GREY = 0.4


def jittered(images_BHW: Tensor, labels_BHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images [B, H, W] in [0, 1] and labels as seen another time; each image has draws of its own.

    Left and right are exchanged in half of them, up and down never: sound comes from above. Then they are shifted and
    zoomed, labels with them, and blurred; and get grain as the speckle of another scanner or of the VAE, another
    grey curve, contrast and brightness.
    """
    num, height, width = images_BHW.shape

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((num, 1, 1), generator=generator)

    mirror = 1 - 2 * (between(0, 1) < 0.5).float()
    zoom = torch.exp(between(-MAX_ZOOM, MAX_ZOOM))
    across, down = (between(-2 * MAX_SHIFT, 2 * MAX_SHIFT) for _ in range(2))
    nothing = torch.zeros_like(zoom)
    rows = [torch.cat([zoom * mirror, nothing, across], dim=2), torch.cat([nothing, zoom, down], dim=2)]
    places = functional.affine_grid(torch.cat(rows, dim=1), [num, 1, height, width], align_corners=False)
    images_BHW = _resampled(images_BHW, places, "bilinear")
    labels_BHW = _resampled(labels_BHW.float(), places, "nearest").long()

    images_BHW = _blurred(images_BHW, between(-MAX_BLUR_PIXELS, MAX_BLUR_PIXELS).clamp(min=0))
    grain_pixels = between(0, MAX_GRAIN_BLUR_PIXELS)
    # Blurred noise is fainter; this about makes up for it.
    grain = _blurred(torch.randn(images_BHW.shape, generator=generator), grain_pixels) * (1 + 2 * grain_pixels)
    strength = between(-MAX_GRAIN, MAX_GRAIN).clamp(min=0)
    images_BHW = images_BHW + strength * grain * (GRAIN_OF_BLACK + images_BHW)
    images_BHW = images_BHW.clamp(min=1e-3) ** torch.exp(between(-MAX_LOG_GAMMA, MAX_LOG_GAMMA))
    contrast = torch.exp(between(-MAX_LOG_CONTRAST, MAX_LOG_CONTRAST))
    images_BHW = (images_BHW - MIDDLE_GREY) * contrast + MIDDLE_GREY + between(-MAX_BRIGHTNESS, MAX_BRIGHTNESS)
    return images_BHW.clamp(0, 1), labels_BHW


def _resampled(images_BHW: Tensor, places: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(images_BHW[:, None], places, mode=mode, align_corners=False)[:, 0]


def _blurred(images_BHW: Tensor, sigma_B11: Tensor) -> Tensor:
    """Return each image blurred by a Gaussian of its own width in pixels; 0 leaves it as it is."""
    num = len(images_BHW)
    offsets = torch.arange(-KERNEL_REACH, KERNEL_REACH + 1, dtype=torch.float32)
    kernels_BK = torch.exp(-0.5 * (offsets / sigma_B11[:, 0].clamp(min=0.05)) ** 2)
    kernels_BK = kernels_BK / kernels_BK.sum(1, keepdim=True)
    padded = functional.pad(images_BHW[None], 4 * (KERNEL_REACH,), mode="replicate")
    rows = functional.conv2d(padded, kernels_BK[:, None, :, None], groups=num)
    return functional.conv2d(rows, kernels_BK[:, None, None, :], groups=num)[0]
