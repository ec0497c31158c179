"""Two-dimensional NIfTI files as pictures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import DataError


def read_picture(path: Path, how: Image.Resampling) -> NDArray[np.uint8]:
    """Return a 2-D NIfTI upright and with pixels as wide as high, [H, W] uint8.

    NIfTI counts across first and down second, so the array is transposed; the signs of its affine are not used.
    Oblong pixels are resampled by `how` to squares of their shorter side, so that nothing is lost.
    Raises: DataError if it cannot be read, is not 2-D, or has values outside 0..255.
    """
    import nibabel

    try:
        image = nibabel.Nifti1Image.from_filename(path)
        values = np.asarray(image.dataobj)
    except Exception as error:  # nibabel raises ImageFileError, EOFError, zlib.error, OSError ... on damaged files
        raise DataError(f"{path} cannot be read as NIfTI: {str(error).partition(chr(10))[0]}: copy it anew") from error
    if values.ndim < 2 or set(values.shape[2:]) - {1}:
        raise DataError(f"{path} has the shape {values.shape}, needed two dimensions")
    if not (values.min() >= 0 and values.max() <= 255):
        raise DataError(f"{path} has values from {values.min()} to {values.max()}, needed 0 to 255")
    upright = np.rint(values.reshape(values.shape[:2]).T).astype(np.uint8)
    width_mm, height_mm = (float(size) for size in image.header.get_zooms()[:2])
    if min(width_mm, height_mm) <= 0:
        raise DataError(f"{path} has pixels of {width_mm:g} x {height_mm:g} mm, needed more than 0")
    side_mm = min(width_mm, height_mm)
    size = round(upright.shape[1] * width_mm / side_mm), round(upright.shape[0] * height_mm / side_mm)
    return np.asarray(Image.fromarray(upright).resize(size, how))
