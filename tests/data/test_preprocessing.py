"""Image and mask become the same square: what lies together in the files lies together there."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.preprocessing import Resize, resized


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(3, 200), st.integers(3, 200)),
    resize=st.sampled_from(["pad", "crop", "stretch"]),
    resolution=st.sampled_from([8, 64]),
)
def test_image_and_mask_go_the_same_way(size: tuple[int, int], resize: Resize, resolution: int) -> None:
    """A mask of the picture's bright half is found where the picture is bright, up to one pixel at its edge."""
    x = np.arange(size[0])[None, :] >= size[0] / 2
    half = np.broadcast_to(x, (size[1], size[0])).astype(np.uint8)
    bright = np.asarray(resized(Image.fromarray(255 * half), resolution, resize)) >= 128
    mask = np.asarray(resized(Image.fromarray(half), resolution, resize, Image.Resampling.NEAREST))
    assert mask.shape == (resolution, resolution)
    assert set(np.unique(mask)) <= {0, 1}
    assert (bright != mask.astype(bool)).sum(axis=1).max() <= 1 + resolution // min(size)


def test_padding_keeps_the_geometry() -> None:
    padded = np.asarray(resized(Image.new("L", (64, 32), 200), 64, "pad"))
    assert (padded[16:48] == 200).all()
    assert not padded[:16].any()
    assert not padded[48:].any()
