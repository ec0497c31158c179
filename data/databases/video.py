"""Single frames of video files."""

from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError


def read_frame(path: Path, number: int) -> NDArray[np.uint8]:
    """Return frame `number`, counted from 0, of a video as grey values, [H, W] uint8.

    Raises: DataError if the video cannot be decoded, or ends before.
    """
    import av

    try:
        with av.open(str(path)) as video:
            frame = next(islice(video.decode(video=0), number, None), None)
            grey = None if frame is None else frame.to_ndarray(format="gray")
    except Exception as error:  # PyAV raises FFmpegError, OSError, ValueError, IndexError ... on damaged files
        raise DataError(f"{path} cannot be decoded as a video: {error}: copy it anew") from error
    if grey is None:
        raise DataError(f"{path} ends before frame {number}, which its table names: copy it anew")
    return np.asarray(grey, dtype=np.uint8)
