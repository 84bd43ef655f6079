import numpy as np
import pandas as pd
import pytest

from chexnet.cam import min_max, peak_points, upsample_map
from chexnet.evaluation.localization import overlaps
from chexnet.labels import box_masks, points_in_boxes

# A tall film, 1000 x 400 pixels, whose box is wide of the mark if x and y change places.
FILMS = pd.DataFrame({"image_id": ["tall", "wide"], "rows": [1000, 300], "columns": [400, 900]})
BOXES = pd.DataFrame(
    {
        "image_id": ["tall", "wide"],
        "x": [40.0, 600.0],
        "y": [700.0, 30.0],
        "width": [80.0, 150.0],
        "height": [200.0, 60.0],
    }
)


def one_hot(shape, row, column):
    heat = np.zeros((1, *shape), np.float32)
    heat[0, row, column] = 1
    return heat


def test_brightest_point():
    # Row 4 of 5, column 1 of 8: x = 1.5 / 8, y = 4.5 / 5.
    """The brightest point is the center of its cell in x and y."""
    assert peak_points(one_hot((5, 8), 4, 1)).tolist() == [[0.1875, 0.9]]


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_brightest_pixel_of_the_upsampled_map(seed):
    maps = np.random.default_rng(seed).normal(size=(3, 5, 8)).astype(np.float32)
    fine = upsample_map(maps, (5 * 9, 8 * 9))  # 9 is odd: every cell's centre is a pixel's centre
    for point, heat in zip(peak_points(maps), fine, strict=True):
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        # At the border the heat stays the same up to the edge; the first pixel of it may be meant.
        assert heat[int(point[1] * 45), int(point[0] * 72)] == heat[row, column]


def test_upsampling_cells():
    """Upsampling keeps every cell over its own part of the film."""
    maps = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    fine = upsample_map(maps, (12, 18))
    assert fine.shape == (2, 12, 18)
    np.testing.assert_array_equal(fine[:, 1::3, 1::3], maps)
    assert (fine[:, 0, 0] == maps[:, 0, 0]).all()
    np.testing.assert_array_equal(upsample_map(maps, (4, 6)), maps)


def test_upsampling_between_centers():
    """Upsampling halfway between two centers is halfway between their values."""
    fine = upsample_map(np.array([[[0.0, 1.0]]], np.float32), (1, 4))
    assert fine[0, 0].tolist() == [0, 0.25, 0.75, 1]  # centres at 1/4 and 3/4


def test_maps_that_are_no_maps_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        upsample_map(np.zeros(4))
    with pytest.raises(ValueError, match="1 of 2 maps have NaN"):
        upsample_map(np.array([[[np.nan]], [[0.0]]]))


def test_a_constant_map_points_nowhere_and_has_no_heat():
    maps = np.full((1, 3, 3), -2, np.float32)
    assert np.isnan(peak_points(maps)).all()
    assert (min_max(maps) == 0).all()
    assert not points_in_boxes(peak_points(maps), ["tall"], BOXES, FILMS).any()


def test_negative_maps():
    """All-negative maps have a brightest point and scaled values from 0 to 1."""
    maps = -1 - one_hot((4, 4), 0, 0) + 2 * one_hot((4, 4), 2, 3)
    assert peak_points(maps).tolist() == [[0.875, 0.625]]
    assert (min_max(maps).min(), min_max(maps).max()) == (0, 1)


@pytest.mark.parametrize(
    ("film", "point", "hit"),
    [
        ("tall", (0.2, 0.8), True),  # its box: x 0.1 to 0.3, y 0.7 to 0.9
        ("tall", (0.8, 0.2), False),  # x and y changed places
        ("tall", (0.1, 0.7), True),  # the upper left corner belongs to the box,
        ("tall", (0.3, 0.9), False),  # the lower right one does not
        ("wide", (0.7, 0.2), True),
        ("wide", (0.2, 0.8), False),  # another film's box
    ],
)
def test_a_point_hits_a_box_of_its_own_film(film, point, hit):
    assert points_in_boxes(np.array([point]), np.array([film]), BOXES, FILMS).tolist() == [hit]


def test_several_boxes_or_none():
    """Each of several boxes counts and a film without any is a miss."""
    boxes = pd.concat([BOXES, BOXES[:1].assign(x=200.0)])  # x 0.5 to 0.7
    points = np.array([[0.6, 0.8], [0.5, 0.5]])
    films = pd.concat([FILMS, FILMS[:1].assign(image_id="none")])
    assert points_in_boxes(points, np.array(["tall", "none"]), boxes, films).tolist() == [
        True,
        False,
    ]


def test_the_map_and_the_mask_of_a_tall_film_meet():
    """The brightest cell inside the box is a hit; in the turned map it is none."""
    # 10 x 5 cells of 100 x 80 pixels: the box covers rows 7 and 8, a quarter of column 0 and three
    # quarters of column 1.
    heat = 2 * one_hot((10, 5), 7, 1) + one_hot((10, 5), 8, 1)
    boxes = BOXES.assign(x=60.0)  # to 140: holds the centre of column 1, at 120
    assert points_in_boxes(peak_points(heat), ["tall"], boxes, FILMS).tolist() == [True]
    turned = heat.transpose(0, 2, 1)
    assert points_in_boxes(peak_points(turned), ["tall"], boxes, FILMS).tolist() == [False]
    iou, iobb = overlaps(heat, box_masks(boxes, FILMS, ["tall"], (10, 5)), [0.5])
    # Marked: rows 7 and 8 of column 1, of which the box holds three quarters.
    assert iou.item() == pytest.approx(1.5 / (2 + 2 - 1.5))
    assert iobb.item() == pytest.approx(0.75)


def test_overlaps_are_the_areas_counted_at_each_threshold():
    rng = np.random.default_rng(0)
    heat = rng.random((4, 12, 15)).astype(np.float32)
    masks = (rng.random((4, 12, 15)) < 0.3).astype(np.float32)
    thresholds = np.array([0.1, 0.5, 0.9, 2.0])
    iou, iobb = overlaps(heat, masks, thresholds)
    for film in range(4):
        for column, threshold in enumerate(thresholds):
            marked, boxed = heat[film] >= threshold, masks[film] > 0
            both, either = (marked & boxed).sum(), (marked | boxed).sum()
            assert iou[film, column] == pytest.approx(both / either, abs=1e-12)
            expected = both / marked.sum() if marked.any() else 0
            assert iobb[film, column] == pytest.approx(expected, abs=1e-12)


def test_a_map_that_marks_exactly_the_boxes_has_iou_one():
    masks = box_masks(BOXES, FILMS, FILMS["image_id"], (10, 30)).round(6)
    assert set(np.unique(masks)) == {0, 1}
    np.testing.assert_array_equal(overlaps(masks, masks, [0.5]), 1)


def test_heat_at_the_threshold_itself_is_marked():
    heat = np.array([[[0.25, 0.5, 0.75]]], np.float32)
    mask = np.array([[[0, 1, 1]]], np.float32)
    assert overlaps(heat, mask, [0.25, 0.5, 0.75])[0].tolist() == [[2 / 3, 1, 1 / 2]]


def test_empty_map():
    """A map that marks nothing has IoU zero, even without any box on the film."""
    nothing = np.zeros((1, 2, 2), np.float32)
    for found in overlaps(nothing, nothing, [0.5]):
        assert found.tolist() == [[0]]
