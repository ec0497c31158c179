"""Polygons are filled with their edges, and cut off at the picture's border."""

import numpy as np

from data.databases.polygon import area, fill_polygons


def test_a_rectangle() -> None:
    mask = fill_polygons([[(2, 1), (5, 1), (5, 3), (2, 3)]], width=8, height=6)
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:6] = 1
    np.testing.assert_array_equal(mask, expected)


def test_several_are_united_and_cut_off() -> None:
    mask = fill_polygons([[(-4, -4), (1, -4), (1, 1), (-4, 1)], [(6, 4), (20, 4), (20, 20), (6, 20)]], 8, 6)
    expected = np.zeros((6, 8), np.uint8)
    expected[:2, :2] = expected[4:, 6:] = 1
    np.testing.assert_array_equal(mask, expected)


def test_corners_between_pixels_go_to_the_nearest() -> None:
    mask = fill_polygons([[(1.6, 0.7), (4.4, 0.7), (4.4, 3.2), (1.6, 3.2)]], 8, 6)
    assert mask[1:4, 2:5].all()
    assert mask.sum() == 9


def test_two_corners_enclose_nothing() -> None:
    assert not fill_polygons([[(1, 1), (5, 5)], []], 8, 6).any()


def test_area() -> None:
    corners = [(0, 0), (4, 0), (4, 3), (0, 3)]
    assert area(corners) == area(corners[::-1]) == 12
