"""What lies within the hull of drawn pixels is filled."""

import numpy as np

from data.databases.outline import fill_outline


def test_a_broken_rectangle() -> None:
    drawn = np.zeros((10, 12), bool)
    drawn[2, 3:9] = drawn[7, 3:9] = drawn[2:8, 3] = True  # the right side is missing
    filled = fill_outline(drawn)
    assert filled[2:8, 3:9].all()
    assert filled.sum() == 36


def test_a_circle_that_the_border_cuts() -> None:
    rows, columns = np.indices((60, 60))
    radius = np.hypot(rows - 30, columns - 5)
    filled = fill_outline(np.abs(radius - 20) < 0.7)
    assert filled[radius < 19.5].all()
    assert not filled[radius > 21].any()


def test_nothing_and_a_line_enclose_only_themselves() -> None:
    drawn = np.zeros((5, 5), bool)
    assert not fill_outline(drawn).any()
    drawn[2, 1:4] = True
    np.testing.assert_array_equal(fill_outline(drawn), drawn)
