import json

import numpy as np
import pandas as pd
import pytest

from chexnet.evaluation import (
    choose_thresholds,
    evaluate_maps,
    iou_at,
    localization,
    localization_scores,
    report_table,
)
from chexnet.evaluation.localization import choose_map_threshold
from chexnet.labels import box_masks
from tests.made_up_run import change_scores, write_run

# Films of 800 x 400 pixels under maps of 8 x 4 cells: a cell is 100 x 100 pixels.
FILMS = pd.DataFrame({"image_id": ["a", "b", "c"], "rows": 800, "columns": 400})
BOXES = pd.DataFrame(
    {"image_id": ["a", "b"], "x": [100.0, 0], "y": [500.0, 0], "width": [100.0, 200], "height": 200}
)


def bright(*cells, shape=(8, 4), base=0.0):
    heat = np.full(shape, base, np.float32)
    for row, column in cells:
        heat[row, column] = base + 1
    return heat


def scores_of(cam, image_id="a", **options):
    return localization_scores(cam[np.newaxis], np.array([image_id]), BOXES, FILMS, **options).iloc[
        0
    ]


def test_hit_and_mirrored_hit():
    """A bright cell in the box is a hit; mirrored or turned it is not."""
    heat = bright((5, 1))
    assert scores_of(heat)["hit"]
    assert not scores_of(heat[::-1])["hit"]
    assert not scores_of(heat[:, ::-1])["hit"]
    assert not scores_of(np.ascontiguousarray(heat.T))["hit"]


def test_rows_of_the_table():
    """Only films with boxes have a row in the order that was asked."""
    maps = np.stack([bright((0, 0)), bright((5, 1)), bright((5, 1))])
    table = localization_scores(maps, np.array(["b", "c", "a"]), BOXES, FILMS)
    assert table["image_id"].tolist() == ["b", "a"]
    assert table["hit"].tolist() == [True, True]
    assert list(table) == ["image_id", "hit", "energy_in_boxes", "box_share"]


def test_areas_are_the_ones_worked_by_hand(monkeypatch):
    # On a canvas of one pixel a cell: marked (5, 1), (6, 1), (7, 1); the box is the first two.
    monkeypatch.setattr(localization, "CANVAS", (8, 4))
    row = scores_of(bright((5, 1), (6, 1), (7, 1)), threshold=0.5)
    assert row["iou"] == pytest.approx(2 / 3)
    assert row["iobb"] == pytest.approx(2 / 3)
    assert row["energy_in_boxes"] == pytest.approx(2 / 3)
    assert row["box_share"] == pytest.approx(2 / 32)


def test_a_map_in_the_shape_of_the_boxes_is_near_perfect():
    mask = box_masks(BOXES, FILMS, ["a"], (64, 32))[0]
    row = scores_of(mask, threshold=0.5)
    assert row["iou"] > 0.97
    assert row["iobb"] > 0.98
    assert row["energy_in_boxes"] > 0.95


def test_iou_is_the_same_on_any_canvas_within_its_pixels():
    heat = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    coarse, fine = (
        iou_at(heat[np.newaxis], ["a"], BOXES, FILMS, [0.6], normalize=True, canvas=size)
        for size in (128, 512)
    )
    assert coarse == pytest.approx(fine, abs=0.01)


def test_min_max_heat_knows_no_scale_and_logits_do():
    heat = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    first = scores_of(heat, threshold=0.5)
    second = scores_of(7 * heat - 3, threshold=0.5)
    assert second["iou"] == pytest.approx(first["iou"], abs=1e-3)
    assert scores_of(heat - 100, threshold=0.5, normalize=False)["iou"] == 0
    everything = scores_of(heat + 100, threshold=0.5, normalize=False)
    assert everything["iou"] == pytest.approx(everything["box_share"])


def test_constant_maps_point_nowhere_and_divide_nothing_by_zero():
    for value in (0.0, -3.0, 5.0):
        row = scores_of(np.full((8, 4), value, np.float32), threshold=0.5)
        assert not row["hit"]
        assert (row["iou"], row["iobb"]) == (0, 0)
    assert row["energy_in_boxes"] == pytest.approx(row["box_share"])  # 5 everywhere


def test_maps_below_zero():
    """Maps below zero have no energy but still a brightest point."""
    row = scores_of(bright((5, 1), base=-9.0), threshold=0.5)
    assert row["hit"]
    assert row["energy_in_boxes"] == 0
    assert row["iou"] > 0.2


def test_what_lies_below_zero_takes_no_energy_away(monkeypatch):
    monkeypatch.setattr(localization, "CANVAS", (8, 4))
    heat = bright((5, 1), (6, 1), (0, 0)) - 3 * bright((0, 3), (7, 3))
    row = scores_of(heat)
    assert row["energy_in_boxes"] == pytest.approx(2 / 3)


def test_a_threshold_in_logits_may_lie_below_zero():
    heat = bright((5, 1), (6, 1), base=-2.0)
    row = scores_of(heat, threshold=-1.55, normalize=False)
    assert 0.2 < row["iou"] < 1
    assert row["iou"] == pytest.approx(scores_of(heat, threshold=0.45)["iou"], abs=0.02)


def test_the_threshold_has_the_largest_mean_iou_of_all_tried():
    rng = np.random.default_rng(0)
    ids, maps = np.array(["a", "b"]), rng.normal(size=(2, 8, 4)).astype(np.float32)
    maps[0, 5:7, 1] += 3
    maps[1, :2, :2] += 3
    for normalize, tried in ((True, np.arange(1, 50) / 50), (False, np.linspace(-2, 4, 40))):
        chosen, iou = choose_map_threshold(maps, ids, BOXES, FILMS, normalize=normalize)
        best, *others = (
            localization_scores(maps, ids, BOXES, FILMS, threshold=level, normalize=normalize)[
                "iou"
            ].mean()
            for level in (chosen, *tried)
        )
        assert iou == pytest.approx(best)
        assert best >= max(others) - (0 if normalize else 0.03)


@pytest.mark.parametrize(
    ("maps", "ids", "options", "message"),
    [
        (np.zeros((8, 4)), ["a"], {}, r"maps have shape \(8, 4\)"),
        (np.zeros((2, 8, 4)), ["a"], {}, r"image_ids \(1,\)"),
        (np.zeros((2, 8, 4)), ["a", "a"], {}, "duplicate ids"),
        (np.full((1, 8, 4), np.nan), ["a"], {}, "NaN or infinite"),
    ],
)
def test_what_cannot_be_judged_is_refused(maps, ids, options, message):
    with pytest.raises(ValueError, match=message):
        localization_scores(maps, ids, BOXES, FILMS, **options)


def test_no_films_give_an_empty_table_and_no_threshold():
    assert len(localization_scores(np.zeros((1, 8, 4)), ["c"], BOXES, FILMS, threshold=0.5)) == 0
    with pytest.raises(ValueError, match="no film with boxes"):
        choose_map_threshold(np.zeros((1, 8, 4)), ["c"], BOXES, FILMS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("output") / "run")


@pytest.fixture(scope="module")
def report(run):
    name = "predictions.csv"
    run.write_metrics({"classes": {"kept": 1}}, {name: run.fingerprint(name)})
    return evaluate_maps(run, n_bootstrap=300)["Pneumonia"]


def test_the_report_is_merged_into_the_metrics(run, report):
    assert run.metrics == {"classes": {"kept": 1}, "localization": {"Pneumonia": report}}
    assert "NaN" not in json.dumps(report)


def test_the_means_are_those_of_the_films(run, report):
    films = run.predictions.set_index("image_id")
    ids, maps = run.maps()
    test = (films.loc[ids, "split"] == "test").to_numpy()
    rows = localization_scores(
        maps[test, 0], ids[test], run.boxes, run.images, threshold=report["thresholds"]["min-max"]
    )
    assert report["hit_rate"]["value"] == pytest.approx(rows["hit"].mean())
    assert report["mean_iou"]["value"] == pytest.approx(rows["iou"].mean())
    assert report["iobb"]["value"] == pytest.approx(rows["iobb"].mean())
    assert report["hit_rate"]["n"] == len(rows)
    assert report["hit_rate"]["low"] < report["hit_rate"]["value"]
    for level, share in report["iou_accuracy"].items():
        assert share["value"] == pytest.approx((rows["iou"] > float(level)).mean())
    youden = choose_thresholds(
        *films.loc[films["split"] == "val", ["y_true", "y_score"]].to_numpy().T
    )["youden"]
    called = films.loc[rows["image_id"], "y_score"] >= youden
    assert report["true_positives"]["hit_rate"]["n"] == called.sum()
    assert report["true_positives"]["mean_iou"]["value"] == pytest.approx(
        rows["iou"][called.to_numpy()].mean()
    )


def test_maps_that_know_where_beat_what_looks_at_no_pixel(run, report):
    assert report["hit_rate"]["low"] > report["baselines"]["fixed_point"]["high"]
    assert report["hit_rate_minus_fixed_point"]["low"] > 0
    assert report["mean_iou_minus_fixed_mask"]["low"] > 0
    assert report["baselines"]["random_point"]["value"] == pytest.approx(
        128 * 256 / 1024 / 512, abs=0.002
    )
    # A little more than half of the training boxes lie left, so there lies the best fixed point.
    boxes = run.boxes.merge(run.images[run.images["split"] == "test"], on="image_id")
    left = (boxes["x"] < 200).mean()
    assert report["baselines"]["fixed_point"]["value"] == pytest.approx(left)
    assert report["prior"]["point"][0] < 0.25
    assert report["challenge_map"]["value"] > 0.02


def test_maps_that_know_nothing_hit_what_a_random_point_hits(tmp_path):
    run = write_run(tmp_path / "run", films=900, signal=0.0)
    report = evaluate_maps(run, n_bootstrap=100)["Pneumonia"]
    assert report["hit_rate"]["value"] == pytest.approx(
        report["baselines"]["random_point"]["value"], abs=0.08
    )
    assert report["hit_rate_minus_fixed_point"]["high"] < 0


def test_test_films_have_no_say_in_thresholds_and_floors(run, report, tmp_path):
    other = write_run(tmp_path / "run")
    films = other.images.set_index("image_id")
    ids, maps = other.maps()
    test = (films.loc[ids, "split"] == "test").to_numpy()
    maps[test] = maps[test][::-1, :, ::-1]
    change_scores(other, maps=maps)
    boxes = other.boxes
    moved = boxes["image_id"].map(films["split"]) == "test"
    boxes.loc[moved, "y"] = 0.0
    other.write_table("boxes.csv", boxes)
    changed = evaluate_maps(other, n_bootstrap=20)["Pneumonia"]
    assert changed["thresholds"] == report["thresholds"]
    assert changed["prior"] == report["prior"]
    training = run.images.loc[run.images["split"] == "train", "image_id"]
    assert report["prior"]["n_films"] == run.boxes["image_id"].isin(training).sum()
    assert changed["mean_iou"]["value"] < report["mean_iou"]["value"] / 2


def test_a_study_without_boxes_gives_reasons_in_place_of_numbers(tmp_path):
    run = write_run(tmp_path / "run", films=80)
    splits, boxes = run.images.set_index("image_id")["split"], run.boxes
    for kept in ([], ["train", "val"]):
        run.write_table("boxes.csv", boxes[boxes["image_id"].map(splits).isin(kept)])
        assert evaluate_maps(run, n_bootstrap=20) == {"Pneumonia": {"reason": "no boxes"}}
    run.write_table("boxes.csv", boxes[boxes["image_id"].map(splits) == "test"])
    report = evaluate_maps(run, n_bootstrap=20)["Pneumonia"]
    assert report["hit_rate"]["value"] is not None
    assert report["mean_iou"]["reason"] == "no films with boxes in validation or training"
    assert report["prior"] is None
    assert report["thresholds"]["min-max"] is None
    assert "challenge_map" not in report


def test_each_class_is_compared_with_its_own_boxes(tmp_path):
    run = write_run(tmp_path / "run", films=200, classes=("Pneumonia", "Edema", "Mass"))
    one = evaluate_maps(run, n_bootstrap=20)
    assert one["Edema"] == one["Mass"] == {"reason": "no boxes"}
    positive = run.images.loc[run.images["Mass"] == 1, "image_id"]
    corners = pd.DataFrame({"image_id": positive, "x": 0, "y": 0, "width": 64, "height": 64})
    boxes = [run.boxes.assign(class_name="Pneumonia"), corners.assign(class_name="Mass")]
    run.write_table("boxes.csv", pd.concat(boxes))
    two = evaluate_maps(run, n_bootstrap=20)
    assert two["Pneumonia"] == one["Pneumonia"]
    assert two["Edema"] == {"reason": "no boxes"}
    assert two["Mass"]["baselines"]["random_point"]["value"] == pytest.approx(1 / 128)
    table = report_table(run.metrics, part="localization")
    assert table["class_name"].unique().tolist() == run.class_names
    assert report_table(run.metrics, class_name="Edema")["note"].tolist() == ["no boxes"]


def test_films_left_out(tmp_path):
    """Positive films without boxes and missing labels are left out."""
    run = write_run(tmp_path / "run", films=200)
    films, boxes = run.read_table("predictions.csv"), run.boxes
    positive = films.loc[films["y_true"] == 1, "image_id"]
    run.write_table("boxes.csv", boxes[~boxes["image_id"].isin(positive[::2])])
    without = evaluate_maps(run, n_bootstrap=20)["Pneumonia"]
    assert without["hit_rate"]["n"] < (films["split"] == "test").sum()
    run.write_table("boxes.csv", boxes)
    missing = films["y_true"].mask(films["image_id"].isin(positive[::2]))
    change_scores(run, predictions=films.assign(y_true=missing))
    found = evaluate_maps(run, n_bootstrap=20)["Pneumonia"]
    for key in ("hit_rate", "mean_iou", "iobb"):
        assert found[key] == without[key]
    test = films[films["split"] == "test"]
    called = (test["y_true"] == 0) & (test["y_score"] >= without["thresholds"]["score"])
    assert without["challenge_map"]["n"] == without["hit_rate"]["n"] + called.sum()


def test_a_scored_film_without_a_map_is_an_error_that_names_it(tmp_path):
    run = write_run(tmp_path / "run", films=80)
    ids, maps = run.maps()
    change_scores(run, image_ids=ids[1:], maps=maps[1:])
    with pytest.raises(ValueError, match=rf"maps.npz: 1 of .* have no map, such as {ids[0]}"):
        evaluate_maps(run, n_bootstrap=20)
