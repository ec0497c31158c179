"""The demo, whole: it draws the images of a scanner that the built-in model had never seen."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tools.contact_sheet import SheetRow, contact_sheet
from tools.demo import run_demo

pytestmark = pytest.mark.slow


def images(folder: Path) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path).convert("L")) for path in sorted(folder.iterdir())])


def corners(images_NHW: NDArray[np.uint8]) -> float:
    """Return the mean grey level of the two upper corners, which lie outside the second scanner's fan."""
    rows, columns = np.indices(images_NHW.shape[1:]) / images_NHW.shape[1]
    outside = np.minimum(columns, 1 - columns) < 0.1 * (1 - 2 * rows)
    return float(images_NHW[:, outside].mean())


def test_the_quick_demo_learns_the_second_scanner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(tmp_path, quick=True, num_ranks=2) == 0
    before, after = images(tmp_path / "generated" / "before"), images(tmp_path / "generated" / "after")
    assert before.shape == after.shape == (8, 128, 128)
    # Tissue at first, black at last; what is still grey after only 60 steps stays below half of it.
    assert corners(before) > 60
    assert corners(after) < corners(before) / 2
    sheet = tmp_path / "contact_sheet.png"
    assert str(sheet) in capsys.readouterr().out
    with Image.open(sheet) as picture:
        assert picture.width > 8 * 128
        assert picture.height > 3 * 128
    assert any((tmp_path / "tensorboard").rglob("events.*"))


def test_a_contact_sheet_holds_every_image_as_it_is() -> None:
    rows = [
        SheetRow(title, "note", np.full((2, 32, 48), level, np.uint8)) for title, level in (("one", 17), ("two", 203))
    ]
    sheet = np.asarray(contact_sheet(rows, ["a caption", "a very long caption " * 9], "heading", "footer").convert("L"))
    for level in (17, 203):
        assert (sheet == level).sum() >= 2 * 32 * 48
