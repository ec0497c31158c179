import numpy as np
import pytest
from PIL import Image

from sampler.contact_sheet import MARGIN, WARNING, Tile, contact_sheet

LONG = "a prompt that goes on and on, " * 12 + "with" + "out" * 90 + " a space"


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("has_masks", [False, True])
def test_nothing_is_cut_off(count: int, has_masks: bool) -> None:
    white = Image.new("RGB", (64, 64), "white")
    tiles = [
        Tile(title, f"{number}, seed 123456789012", white, white if has_masks else None)
        for title in (LONG, "short")
        for number in range(count)
    ]
    sheet = np.asarray(contact_sheet(tiles, "a bundle", "Generated images. Not for diagnosis.", 8)).astype(int)
    background = sheet[0, 0]
    is_ink = np.abs(sheet - background).sum(-1) > 30
    # the margins are empty: no caption, title or image reaches the edge
    assert not is_ink[:, -MARGIN // 2 :].any()
    assert not is_ink[-MARGIN // 2 :].any()
    assert (np.abs(sheet - WARNING).sum(-1) < 40).any(), "the footer is there"
    # every image is there whole: as many white pixels as the images have
    side = 192
    assert (sheet.sum(-1) == 3 * 255).sum() >= 2 * count * side * side
