"""Two-dimensional NIfTI files as pictures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError


def read_picture(path: Path) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Return a 2-D NIfTI as [H, W] uint8, and the width and the height of its pixels in mm.

    NIfTI counts across first and down second: the array is transposed. The signs of its affine are not used.
    Raises: DataError if it cannot be read, is not 2-D, or has values outside 0..255.
    """
    import nibabel

    try:
        image = nibabel.Nifti1Image.from_filename(path)
        values = np.asarray(image.dataobj)
    except Exception as error:  # nibabel raises ImageFileError, EOFError, zlib.error, OSError ... on damaged files
        raise DataError(f"{path} cannot be read as NIfTI: {str(error).partition(chr(10))[0]}") from error
    plane = values.reshape(values.shape[:2]) if values.ndim >= 2 and set(values.shape[2:]) <= {1} else None
    if plane is None:
        raise DataError(f"{path} has the shape {values.shape}, needed two dimensions")
    if not (plane.min() >= 0 and plane.max() <= 255):
        raise DataError(f"{path} has values from {plane.min()} to {plane.max()}, needed 0 to 255")
    width_mm, height_mm = (float(size) for size in image.header.get_zooms()[:2])
    if min(width_mm, height_mm) <= 0:
        raise DataError(f"{path} has pixels of {width_mm:g} x {height_mm:g} mm, needed more than 0")
    return np.rint(plane.T).astype(np.uint8), (width_mm, height_mm)
