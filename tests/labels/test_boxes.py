import numpy as np
import pandas as pd
import pytest

from chexnet.labels import (
    box_masks,
    boxes_by_film,
    boxes_of_class,
    check_boxes,
    points_in_boxes,
    scale_boxes,
)
from chexnet.labels.boxes import BOX, coverage

BOXES = pd.DataFrame(
    [("a", 256.0, 512.0, 128.0, 64.0), ("b", 0.0, 0.0, 1024.0, 512.0)],
    columns=["image_id", "x", "y", "width", "height"],
)
IMAGES = pd.DataFrame({"image_id": ["a", "b", "c"], "rows": 1024, "columns": 1024})


def test_box_on_a_smaller_canvas():
    """A box of a 1024 pixel film is halved on a 512 pixel canvas."""
    scaled = scale_boxes(BOXES, 1024, 1024, 512)
    assert scaled.loc[0, ["x", "y", "width", "height"]].tolist() == [128, 256, 64, 32]
    assert BOXES.loc[0, "x"] == 256.0


def test_x_and_y_are_scaled_apart_when_the_film_is_not_square():
    # 1000 rows on 100 are a tenth, 500 columns on 100 a fifth.
    scaled = scale_boxes(BOXES, 1000, 500, (100, 100))
    assert scaled.loc[0, ["x", "y", "width", "height"]].tolist() == pytest.approx(
        [51.2, 51.2, 25.6, 6.4]
    )


def test_each_box_may_belong_to_a_film_of_its_own_size():
    scaled = scale_boxes(BOXES, [1024, 512], [1024, 2048], 64)
    assert scaled["width"].tolist() == [8, 32]
    assert scaled["height"].tolist() == [4, 64]


def test_an_array_shape_serves_as_the_canvas():
    scaled = scale_boxes(BOXES, 1024, 1024, np.zeros((512, 256, 1)).shape)
    assert scaled.loc[0, ["x", "y"]].tolist() == [64, 256]
    as_text = scale_boxes(BOXES, ["1024", "1024"], ["1024", "1024"], (512, 256))
    assert as_text.equals(scaled)


def test_a_film_without_size_cannot_scale_its_boxes():
    with pytest.raises(ValueError, match="above 0"):
        scale_boxes(BOXES, 0, 1024, 512)
    with pytest.raises(ValueError, match="above 0"):
        scale_boxes(BOXES, 1024, [1024, 0], 512)


def test_the_share_of_a_cell_is_exact():
    # On a grid of 4 x 4 the box (0.125..0.5, 0.25..0.375) covers half of column 0 and all of
    # column 1, and half of row 1.
    covered = coverage(np.array([[0.125, 0.25, 0.375, 0.125]]), (4, 4))
    expected = np.zeros((4, 4))
    expected[1, :2] = [0.25, 0.5]
    assert covered == pytest.approx(expected)


def test_overlapping_boxes_count_once():
    covered = coverage(np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]), (1, 1))
    assert covered[0, 0] == pytest.approx(0.25 + 0.25 - 0.0625)


def test_overlap_beside_boxes_without_area():
    """Boxes without area, or outside the film, do not hide that others overlap."""
    overlapping = [[0, 0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]
    empty = [[0.1, 0.1, 0, 0.2], [0.3, 0.3, 0.2, 0], [2, 2, 1, 1]]
    covered = coverage(np.array(overlapping + empty), (4, 4))
    assert covered == pytest.approx(coverage(np.array(overlapping), (4, 4)))
    assert covered.sum() == pytest.approx(7 / 16 * 16)


def test_what_lies_outside_the_film_is_cut_off():
    assert coverage(np.array([[-0.5, 0.5, 1.0, 2.0]]), (2, 2)).tolist() == [[0, 0], [1, 0]]
    assert coverage(np.array([[1.5, 1.5, 1.0, 2.0]]), (2, 2)).sum() == 0


def test_box_over_the_edge():
    """Only the part inside counts, on each side of the film, and in the sum of overlapping ones."""
    for box, expected in [
        ((-0.5, 0, 1, 1), [[1, 0], [1, 0]]),
        ((0.5, 0, 1, 1), [[0, 1], [0, 1]]),
        ((0, -0.5, 1, 1), [[1, 1], [0, 0]]),
        ((0, 0.5, 1, 1), [[0, 0], [1, 1]]),
    ]:
        assert coverage(np.array([box]), (2, 2)).tolist() == expected
        assert coverage(np.array([box, box]), (2, 2)).tolist() == expected


def test_points_in_boxes():
    """Film a has a box 256 to 384 across and 512 to 576 down, film b one of its upper half."""
    inside, beside, left = (350, 540), (400, 540), (200, 540)
    corner, end = (256, 512), (384, 576)  # a box includes its first pixel, not the one behind it
    points = np.array([inside, beside, left, corner, end, (300, 600), inside, (9, 9)]) / 1024
    image_ids = np.array([*"aaaaaa", "b", "c"])
    found = points_in_boxes(points, image_ids, BOXES, IMAGES)
    assert found.dtype == bool
    assert found.tolist() == [True, False, False, True, False, False, False, False]
    assert points_in_boxes(points[:1], ["b"], BOXES, IMAGES).tolist() == [False]
    assert points_in_boxes(points[:1] / 2, ["b"], BOXES, IMAGES).tolist() == [True]
    assert not points_in_boxes(np.array([[np.nan, np.nan]]), ["a"], BOXES, IMAGES).any()
    two = pd.concat([BOXES, BOXES[1:].assign(image_id="a")])
    assert points_in_boxes(points[:2] / 2, ["a", "a"], two, IMAGES).tolist() == [True, True]
    # The box of a film that is not asked for needs no size.
    assert points_in_boxes(points[:1], ["a"], BOXES, IMAGES[:1]).tolist() == [True]


def test_the_exact_share_agrees_with_counting_pixels():
    draw = np.random.default_rng(0)
    boxes = draw.integers(0, 64, (5, 4)) / 128
    counted = np.zeros((128, 128))
    for x, y, width, height in (boxes * 128).astype(int):
        counted[y : y + height, x : x + width] = 1
    counted = counted.reshape(8, 16, 4, 32).mean((1, 3))
    assert coverage(boxes, (8, 4)) == pytest.approx(counted)


def test_masks_in_the_order_asked_for():
    """Masks come in the order asked for and are zero without a box."""
    masks = box_masks(BOXES, IMAGES, ["c", "b", "a"], (2, 4))
    assert masks.shape == (3, 2, 4)
    assert masks.dtype == np.float32
    assert masks[0].sum() == 0
    assert masks[1].tolist() == [[1] * 4, [0] * 4]
    # 128 x 64 original pixels in a cell of 256 x 512, which starts at (256, 512).
    assert masks[2, 1, 1] == pytest.approx(128 * 64 / (256 * 512))
    assert masks[2].sum() == masks[2, 1, 1]


def test_boxes_are_shares_of_their_own_film():
    tall = pd.DataFrame({"image_id": ["a", "b"], "rows": [1024, 2048], "columns": [512, 1024]})
    shares = boxes_by_film(pd.concat([BOXES, BOXES[:1]]), tall)
    assert set(shares) == {"a", "b"}
    assert shares["a"].tolist() == [[0.5, 0.5, 0.25, 0.0625]] * 2
    assert shares["b"].tolist() == [[0, 0, 1, 0.25]]


def test_a_box_whose_film_has_no_known_size_is_named():
    with pytest.raises(ValueError, match=r"rows and columns.*: b$"):
        boxes_by_film(BOXES, IMAGES[IMAGES["image_id"] != "b"])
    with pytest.raises(ValueError, match="no rows and columns of films with boxes: a, b"):
        boxes_by_film(BOXES, IMAGES[["image_id"]])
    assert boxes_by_film(BOXES[:0], IMAGES[["image_id"]]) == {}


def test_no_boxes_at_all_make_empty_masks():
    assert box_masks(BOXES.iloc[:0], IMAGES, ["a"], 3).tolist() == [[[0] * 3] * 3]


def boxes_of(*rows):
    return pd.DataFrame([("a", *row) for row in rows], columns=["image_id", *BOX])


TALL = pd.DataFrame({"image_id": ["a"], "rows": [200], "columns": [100]})


def test_boxes_that_pass():
    # The last one ends a pixel beyond the edges: rounding.
    """Boxes on their film pass and films without size are not checked."""
    check_boxes(TALL, boxes_of((0, 0, 100, 200), (40, 150, 10, 10), (90, 190, 11, 11)))
    outside = boxes_of((900, 900, 10, 10))
    check_boxes(TALL.drop(columns="rows"), outside)
    check_boxes(TALL.assign(rows=np.nan), outside)
    check_boxes(TALL, outside.assign(image_id="b"))


@pytest.mark.parametrize("box", [(100, 20, 10, 10), (20, 200, 10, 10), (60, 20, 90, 10)])
def test_center_outside_the_film(box):
    """A box whose center is outside its film is refused with both sizes."""
    named = r"boxes: 1 boxes outside their film: a \(x=.*; film 100 x 200 pixels\); expected"
    with pytest.raises(ValueError, match=named):
        check_boxes(TALL, boxes_of((0, 0, 60, 60), box))


@pytest.mark.parametrize("box", [(50, 20, 60, 10), (20, 150, 10, 60)])
def test_a_box_over_the_edge_of_its_film_is_named_in_a_warning(box):
    with pytest.warns(UserWarning, match=r"1 of 2 boxes extend over the edge.*: a \(x="):
        check_boxes(TALL, boxes_of((0, 0, 60, 60), box))


def test_boxes_in_a_quarter_of_their_films():
    """Boxes that are all in a quarter of their films look like those of smaller films."""
    small = boxes_of(*[(k, 2 * k, 10, 20) for k in range(10)])
    check_boxes(TALL, small[:9])
    with pytest.warns(UserWarning, match="all 10 boxes are in the upper left quarter"):
        check_boxes(TALL, small)
    check_boxes(TALL, boxes_of(*[(k, 2 * k, 10, 20) for k in range(9)], (45, 5, 10, 10)))


def test_boxes_without_class():
    """Boxes without a class are of the first and others of their own."""
    boxes = pd.DataFrame({"image_id": ["a", "b"]})
    assert boxes_of_class(boxes, "Mass", ["Mass", "Edema"]).equals(boxes)
    assert boxes_of_class(boxes, "Edema", ["Mass", "Edema"]).empty
    named = boxes.assign(class_name=["Edema", "Mass"])
    assert boxes_of_class(named, "Mass", ["Mass", "Edema"])["image_id"].tolist() == ["b"]
