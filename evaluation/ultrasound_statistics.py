"""Statistics of speckle and texture in a grey ultrasound image, for comparing sets of images.

They say whether two sets are alike, not whether either is right. Undoing the log compression assumes one dynamic
range, as an image does not tell its own: with another one, or another grey curve, speckle SNR and Nakagami m of the
same tissue differ. Gain moves the brightness, and with what it clips at black and white all the others. A patch that is
not one tissue (a boundary, a vessel) has a lower SNR and m than its speckle. So sets of different settings of a scanner
differ by those.
"""

# H W height and width in pixels, N images, D statistics, P patches, K pixels of a patch's side

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

STATISTICS = (
    "speckle_snr",
    "nakagami_m",
    "axial_width_px",
    "lateral_width_px",
    "glcm_contrast",
    "glcm_homogeneity",
    "brightness",
)
# Black to white. Scanners have 40 to 80; the simulated images 52 to 66.
DYNAMIC_RANGE_DB = 60.0
WHITE = 255
PATCH_PIXELS = 16
# A pixel is of tissue where the mean around it is above this grey level: a dark spot of speckle is, the surroundings of
# a sector are not, even where JPEG or a VAE left a little noise in them.
BLACK_LEVEL, AROUND_PIXELS = 8, 5
# Of a patch that counts: pixels outside the tissue, and those that are clipped to black or to white.
MAX_SHARE_OUTSIDE = 0.05
MAX_SHARE_CLIPPED = 0.05
GLCM_LEVELS = 16


def image_statistics(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Return `STATISTICS` of grey images, [N, D], all finite; see the functions for their units."""
    rows = [_of_image(image_HW) for image_HW in images]
    return np.array(rows, dtype=np.float64).reshape(-1, len(STATISTICS))


def _of_image(image_HW: NDArray[np.uint8]) -> tuple[float, ...]:
    tissue_HW = tissue(image_HW)
    patches_PKK = patches(image_HW, tissue_HW)
    return (
        *speckle(patches_PKK),
        correlation_width(patches_PKK),
        correlation_width(patches_PKK.swapaxes(1, 2)),
        *co_occurrence(image_HW, tissue_HW),
        float(image_HW[tissue_HW].mean()) if tissue_HW.any() else 0.0,  # grey levels, 0 to 255
    )


def tissue(image_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where an image is not black, [H, W]; large anechoic regions are left out too."""
    around_HW = uniform_filter(image_HW.astype(np.float32), AROUND_PIXELS)
    found: NDArray[np.bool_] = around_HW > BLACK_LEVEL
    return found


def patches(image_HW: NDArray[np.uint8], tissue_HW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the patches of a grid that lie in tissue and are not clipped, [P, K, K], grey levels."""
    is_clipped_HW = (image_HW == 0) | (image_HW == WHITE)
    whole, outside, clipped = (_in_patches(pixels) for pixels in (image_HW, ~tissue_HW, is_clipped_HW))
    over = (1, 2)
    counts = (outside.mean(over) <= MAX_SHARE_OUTSIDE) & (clipped.mean(over) <= MAX_SHARE_CLIPPED)
    return whole[counts].astype(np.float64)


def _in_patches(pixels_HW: NDArray[np.generic]) -> NDArray[np.generic]:
    rows, columns = (side // PATCH_PIXELS for side in pixels_HW.shape)
    cut = pixels_HW[: rows * PATCH_PIXELS, : columns * PATCH_PIXELS]
    grid = cut.reshape(rows, PATCH_PIXELS, columns, PATCH_PIXELS).swapaxes(1, 2)
    return grid.reshape(rows * columns, PATCH_PIXELS, PATCH_PIXELS)


def speckle(patches_PKK: NDArray[np.float64]) -> tuple[float, float]:
    """Return the speckle SNR, mean / standard deviation of the envelope, and Nakagami's m; medians over patches.

    Fully developed speckle has 1.91 and 1; averaging (compounding, blur) raises both, strong single scatterers lower
    them. The envelope is 10^(grey / 255 * DYNAMIC_RANGE_DB / 20). No patch: 0. A patch's spread is taken to be that of
    rounding to whole grey levels at least, so that of a flat patch SNR is 128 and m 4,100, not infinite.
    Source: Burckhardt 1978 (doi:10.1109/T-SU.1978.30978); m by moments, E[I]^2 / Var[I] of the intensity
    I: Nakagami 1960, Shankar 2000
    (doi:10.1109/58.842062).
    """
    if not len(patches_PKK):
        return 0.0, 0.0
    envelope_PK = (10 ** (patches_PKK / WHITE * DYNAMIC_RANGE_DB / 20)).reshape(len(patches_PKK), -1)
    level = np.log(10) / WHITE * DYNAMIC_RANGE_DB / 20  # of the envelope, in proportion to it
    rounding = level**2 / 12

    def mean_square_to_variance(values_PK: NDArray[np.float64], least: float) -> NDArray[np.float64]:
        mean = values_PK.mean(1)
        ratio: NDArray[np.float64] = 1 / np.maximum(values_PK.var(1) / mean**2, least)
        return ratio

    snr_P = np.sqrt(mean_square_to_variance(envelope_PK, rounding))
    m_P = mean_square_to_variance(envelope_PK**2, 4 * rounding)
    return float(np.median(snr_P)), float(np.median(m_P))


def correlation_width(patches_PKK: NDArray[np.float64]) -> float:
    """Return the full width at half maximum of the autocorrelation down the first axis of patches, in pixels.

    Of grey levels about the mean of their line down that axis, so that layers across it do not count; over all patches
    together; between whole lags on a straight line. It is narrower than that of the speckle alone, as a line is short.
    At most the patch's side, which is also that of flat patches; no patch: 0. Axial is down the image, which in a
    sector is so in the middle only. Source: the speckle cell of Wagner et al. 1983 (doi:10.1109/T-SU.1983.31404), there
    of the intensity.
    """
    if not len(patches_PKK):
        return 0.0
    centred = patches_PKK - patches_PKK.mean(1, keepdims=True)
    side = centred.shape[1]
    products = [float((centred[:, : side - lag] * centred[:, lag:]).mean()) for lag in range(side // 2 + 1)]
    half = products[0] / 2
    below = next((lag for lag, product in enumerate(products) if product < half), None)
    if below is None:
        return float(side)
    before, after = products[below - 1], products[below]
    return 2 * (below - 1 + (before - half) / (before - after))


def co_occurrence(image_HW: NDArray[np.uint8], tissue_HW: NDArray[np.bool_]) -> tuple[float, float]:
    """Return contrast and homogeneity of the grey-level co-occurrence of neighbours in tissue, mean of two directions.

    Of 16 grey levels: contrast 0 to 225 (levels squared), homogeneity 0 to 1. Without tissue: 0 and 1, as of one level.
    Source: Haralick et al. 1973 (doi:10.1109/TSMC.1973.4309314), f2 and f5 ("inverse difference moment"), which are
    sums over the matrix; here the same sums over pairs of pixels.
    """
    levels_HW = image_HW.astype(np.int64) * GLCM_LEVELS // (WHITE + 1)
    found = []
    for one, other in (((slice(1, None),), (slice(-1),)), ((..., slice(1, None)), (..., slice(-1)))):
        differences = (levels_HW[one] - levels_HW[other])[tissue_HW[one] & tissue_HW[other]]
        if len(differences):
            found.append((float((differences**2).mean()), float((1 / (1 + differences**2)).mean())))
    if not found:
        return 0.0, 1.0
    contrast, homogeneity = np.mean(found, axis=0)
    return float(contrast), float(homogeneity)
