"""Peaks and scales of maps, worked by hand; upsampling is in test_exact."""

import numpy as np
import pytest

from chexnet.cam import min_max, normalize_map, peak_points, shared_scale

# Two maps of 2 x 3 cells. The largest cell is the second of the first row, the last of the second.
MAPS = np.array([[[0.0, 6.0, 2.0], [1.0, 3.0, 0.0]], [[-4.0, -4.0, -4.0], [-4.0, -4.0, 4.0]]])


def test_min_max():
    """Each map is stretched by its own extremes; a constant one is 0."""
    expected = [[[0, 1, 1 / 3], [1 / 6, 0.5, 0]], [[0, 0, 0], [0, 0, 1]]]
    np.testing.assert_allclose(min_max(MAPS), expected)
    assert (min_max(np.full((2, 2, 3), 5.0)) == 0).all()


def test_peak_points():
    """The center of the largest cell, x before y, in shares of width and height."""
    np.testing.assert_allclose(peak_points(MAPS), [[3 / 6, 1 / 4], [5 / 6, 3 / 4]])
    np.testing.assert_allclose(peak_points([[[1, 7, 7]]]), [[0.5, 0.5]])  # the first of two


def test_peak_of_nothing():
    """A constant map and one with NaN have no peak, the map beside them has."""
    broken = MAPS.copy()
    broken[0, 0, 0] = np.nan
    broken[1] = 3
    points = peak_points(np.concatenate([broken, MAPS[:1]]))
    assert np.isnan(points[:2]).all()
    np.testing.assert_allclose(points[2], [0.5, 0.25])


def test_shared_scale():
    """The 95th percentile of the maxima 0 to 20 is 19; maps that are not finite do not count."""
    maps = np.zeros((21, 2, 3))
    maps[:, 1, 2] = np.arange(21)
    assert shared_scale(maps) == pytest.approx(19)
    maps[20, 0, 0] = np.nan
    assert shared_scale(maps) == pytest.approx(0.95 * 19)
    # One map of forty is positive: its maximum. None is, or none is finite: 1.
    rare = np.full((40, 1, 1), -1.0)
    rare[0] = 5
    assert shared_scale(rare) == 5
    assert shared_scale(rare[1:]) == 1
    assert shared_scale(np.full((1, 2, 2), np.inf)) == 1


def test_normalize_map():
    """Negative values are 0; without a scale the maximum is 1; no map is stretched to look so."""
    np.testing.assert_allclose(normalize_map(MAPS[0], scale=4)[0], [0, 1, 0.5])
    np.testing.assert_allclose(normalize_map(MAPS[0])[0], [0, 1, 1 / 3])
    assert (normalize_map(-MAPS[0]) == 0).all()
    assert normalize_map(MAPS).dtype == np.float32
    for scale in (0, -1, np.nan):
        with pytest.raises(ValueError, match="expected a number > 0"):
            normalize_map(MAPS, scale=scale)
