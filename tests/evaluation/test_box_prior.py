import numpy as np
import pandas as pd
import pytest

from chexnet.evaluation.prior import fit_box_prior, fixed_mask_iou
from chexnet.labels import box_masks, points_in_boxes


def study(boxes, rows=1000, columns=500):
    boxes = pd.DataFrame(boxes, columns=["image_id", "x", "y", "width", "height"])
    films = pd.DataFrame({"image_id": boxes["image_id"].unique()})
    return boxes, films.assign(rows=rows, columns=columns)


def test_the_point_is_where_most_films_have_a_box():
    # Two of three films have a box around x 300 of 500, y 200 of 1000: x 0.6, y 0.2.
    boxes, films = study(
        [("a", 250, 150, 75, 100), ("b", 275, 175, 75, 100), ("c", 50, 800, 100, 100)]
    )
    prior = fit_box_prior(boxes, films)
    x, y = prior.point
    assert 0.55 < x < 0.65
    assert 0.175 < y < 0.25
    assert prior.share.max() == pytest.approx(2 / 3, abs=1e-6)
    assert prior.n_films == 3


def test_boxes_of_one_film_that_overlap_count_once():
    boxes, films = study([("a", 0, 0, 250, 500), ("a", 0, 0, 250, 500), ("b", 250, 500, 250, 500)])
    assert fit_box_prior(boxes, films).share.max() == 1 / 2


def test_equal_boxes_are_their_own_best_mask():
    boxes, films = study([(name, 125, 250, 125, 250) for name in "abcd"])
    prior = fit_box_prior(boxes, films)
    assert prior.mask.mean() == pytest.approx(1 / 16)
    assert fixed_mask_iou(prior, boxes, films, films["image_id"]).tolist() == [1] * 4


def test_no_other_level_has_a_larger_mean_iou_on_training_films():
    rng = np.random.default_rng(0)
    corner = rng.normal([200, 500], [60, 120], size=(60, 2)).clip(0)
    size = rng.uniform([50, 100], [200, 300], size=(60, 2))
    boxes, films = study([(f"{n}", *corner[n], *size[n]) for n in range(60)])
    prior = fit_box_prior(boxes, films)
    best = fixed_mask_iou(prior, boxes, films, films["image_id"]).mean()
    masks = box_masks(boxes, films, films["image_id"], 128)
    for level in np.arange(1, 50) / 50 * prior.share.max():
        area = prior.share >= level
        shared = (masks * area).sum(axis=(1, 2))
        union = masks.sum(axis=(1, 2)) + area.sum() - shared
        assert (shared / union).mean() <= best + 1e-5


def test_boxes_of_other_films_have_no_say():
    boxes, films = study([("a", 125, 250, 125, 250), ("b", 375, 750, 125, 250)])
    assert fit_box_prior(boxes, films[:1]).n_films == 1
    assert not fit_box_prior(boxes, films[:1]).mask[96:, 96:].any()
    with pytest.raises(ValueError, match="none of the 1 training films has a box"):
        fit_box_prior(boxes, films[:1].assign(image_id="c"))


@pytest.fixture
def real(rsna_dir):
    def read(folder):
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there: no complete tables to test on")
        table = pd.read_csv(folder / "stage_2_train_labels.csv")
        table = table.rename(columns={"patientId": "image_id"})
        boxes = table[table["Target"] == 1]
        films = table[["image_id"]].drop_duplicates().assign(rows=1024, columns=1024)
        return boxes, films, boxes["image_id"].unique()

    return lambda name: read(rsna_dir.parent / name)


@pytest.mark.parametrize(
    ("name", "random_point", "fixed_point", "fixed_mask"),
    [("rsna-mini", 0.151, 0.615, 0.320), ("rsna-tables", 0.1175, 0.571, 0.292)],
)
def test_on_real_boxes_what_needs_no_pixels(real, name, random_point, fixed_point, fixed_mask):
    boxes, films, ids = real(name)
    rng = np.random.default_rng(0)
    ids = ids if len(ids) < 1000 else rng.choice(ids, 1000, replace=False)
    sampled = films[films["image_id"].isin(ids)]
    prior = fit_box_prior(boxes, sampled)
    hits = points_in_boxes(np.tile(prior.point, (len(ids), 1)), ids, boxes, films)
    areas = box_masks(boxes, films, ids, 64).mean(axis=(1, 2))
    assert areas.mean() == pytest.approx(random_point, abs=0.006)
    assert hits.mean() == pytest.approx(fixed_point, abs=0.03)
    assert fixed_mask_iou(prior, boxes, films, ids).mean() == pytest.approx(fixed_mask, abs=0.012)
