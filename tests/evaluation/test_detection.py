import numpy as np
import pandas as pd
import pytest

from chexnet.evaluation.localization import (
    box_iou,
    challenge_score,
    challenge_scores,
    choose_challenge_threshold,
    extract_boxes,
)


def test_boxes_are_cut_around_each_spot_the_surest_first():
    heat = np.zeros((20, 40), np.float32)
    heat[2:6, 4:12] = 0.6  # x 0.1 to 0.3, y 0.1 to 0.3
    heat[10:20, 30:40] = 0.7
    heat[12, 33] = 0.9  # its highest heat is the confidence
    expected = [[0.75, 0.5, 0.25, 0.5, 0.9], [0.1, 0.1, 0.2, 0.2, 0.6]]
    np.testing.assert_allclose(extract_boxes(heat, 0.5), expected, atol=1e-6)
    assert len(extract_boxes(heat, 0.65)) == 1
    assert extract_boxes(heat, 0.95).shape == (0, 5)


def test_a_speck_is_no_box():
    heat = np.zeros((128, 128), np.float32)
    heat[:9, :9] = 1  # 81 of 16,384 pixels are 0.494 %
    assert len(extract_boxes(heat, 0.5)) == 0
    heat[:9, 9] = 1
    assert len(extract_boxes(heat, 0.5)) == 1


def test_iou_of_boxes_is_that_of_their_pixels_counted():
    boxes = np.random.default_rng(0).integers(1, 15, size=(12, 4))
    masks = np.zeros((12, 30, 30), bool)
    for mask, (x, y, width, height) in zip(masks, boxes, strict=True):
        mask[y : y + height, x : x + width] = True
    expected = [[(a & b).sum() / (a | b).sum() for b in masks[5:]] for a in masks[:5]]
    np.testing.assert_allclose(box_iou(boxes[:5], boxes[5:]), expected, atol=1e-12)


def test_boxes_that_only_touch_do_not_overlap():
    assert box_iou([[0, 0, 1, 1]], [[1, 0, 1, 1]]).item() == 0
    assert box_iou(np.empty((0, 4)), [[0, 0, 1, 1]]).shape == (0, 1)


TRUE = np.array([[0.1, 0.1, 0.2, 0.4], [0.6, 0.1, 0.2, 0.4]])


def test_the_score_of_exact_boxes_is_one_and_of_none_is_zero():
    assert challenge_score(TRUE, TRUE) == 1
    assert challenge_score(TRUE[:0], TRUE) == 0
    assert challenge_score(TRUE[:1], TRUE) == 0.5  # one hit, one missed


def test_the_score_counts_the_thresholds_that_an_iou_is_above():
    # Moved down by a quarter of its height: IoU = 3/5 = 0.6, above .40 .45 .50 .55 of eight.
    moved = TRUE[:1] + np.array([0, 0.1, 0, 0])
    assert challenge_score(moved, TRUE[:1]) == pytest.approx(4 / 8)


def test_a_false_alarm_beside_a_hit_halves_the_score():
    assert challenge_score(TRUE, TRUE[:1]) == 0.5


def test_a_true_box_is_taken_once_by_the_surest():
    # The second box found overlaps the first true box too, which is taken: a false alarm.
    found = np.vstack([TRUE[0], TRUE[0]])
    assert challenge_score(found, TRUE) == pytest.approx(1 / 3)  # TP 1, FP 1, FN 1


def test_a_film_without_true_boxes_counts_only_if_one_was_found():
    assert challenge_score(TRUE, TRUE[:0]) == 0
    assert np.isnan(challenge_score(TRUE[:0], TRUE[:0]))


@pytest.fixture
def study():
    films = pd.DataFrame({"image_id": list("abcd"), "rows": 800, "columns": 400})
    boxes = pd.DataFrame(
        {"image_id": ["a", "b"], "x": [100.0, 200], "y": [400.0, 400], "width": 100, "height": 200}
    )
    # 4 x 4 cells of 200 x 100 pixels: the boxes are cells (2, 1) and (2, 2).
    maps = np.zeros((4, 4, 4), np.float32)
    maps[0, 2, 1] = maps[1, 2, 2] = maps[2, 0, 0] = 1
    return maps, np.array(list("abcd")), boxes, films


def test_films_that_are_not_predicted_positive_get_no_box(study):
    maps, ids, boxes, films = study
    positive = np.array([True, False, True, False])
    scores = challenge_scores(maps, ids, boxes, films, positive, [0.5])[:, 0]
    assert scores[0] > 0.5  # about the box
    assert scores[1:3].tolist() == [0, 0]  # missed; a false alarm
    assert np.isnan(scores[3])


def test_the_threshold_chosen_is_the_best_of_those_tried(study):
    maps, ids, boxes, films = study
    positive = np.array([True, True, False, False])
    best = choose_challenge_threshold(maps, ids, boxes, films, positive)
    tried = [
        np.nanmean(challenge_scores(maps, ids, boxes, films, positive, [level]))
        for level in np.arange(1, 10) / 10
    ]
    assert best == (np.argmax(tried) + 1) / 10
    with pytest.raises(ValueError, match="no film with a box"):
        choose_challenge_threshold(maps[3:], ids[3:], boxes, films, positive[3:])
