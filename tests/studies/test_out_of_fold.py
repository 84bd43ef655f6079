import numpy as np
import pandas as pd
import pytest

from chexnet.auroc import auroc, compare_auroc
from studies.cross_validation_table import read
from studies.out_of_fold import (
    compare_recipes,
    cross_validation_report,
    out_of_fold_films,
    out_of_fold_maps,
)
from tests.made_up_run import write_run


def scored(seed=0, n=400, folds=2, gap=1.0, shift=0.0):
    """Films whose scores lie ``gap`` apart by label, and ``shift`` apart by fold."""
    draw = np.random.default_rng(seed)
    y = np.random.default_rng(9).integers(0, 2, n)
    fold = np.arange(n) % folds + 1
    films = pd.DataFrame(
        {
            "image_id": [f"film{index:04d}" for index in range(n)],
            "patient_id": [f"p{index}" for index in range(n)],
            "fold": fold,
            "y_true": y,
            "y_score": draw.normal(gap * y + shift * fold, 1),
        }
    )
    films["predicted"] = films["y_score"] > 0.5
    films["baseline_view"] = films["baseline_view_sex_age"] = np.random.default_rng(5).normal(
        0.2 * y, 1
    )
    return films


def localized(films, hits):
    """Maps of the positive films, of which a share hits."""
    maps = films[films["y_true"] == 1].copy()
    draw = np.random.default_rng(3)
    maps["hit"] = draw.random(len(maps)) < hits
    maps["fixed_point"] = draw.random(len(maps)) < 0.5
    for column in (
        *("iou", "iou_logit", "iobb", "energy_in_boxes", "box_share", "fixed_mask"),
        *("guided_hit", "guided_iou"),
    ):
        maps[column] = draw.random(len(maps)) * hits
    return maps


def test_the_mean_of_the_folds_is_the_mean_of_their_aurocs():
    films = scored()
    each = [auroc(f["y_true"], f["y_score"]).value for _, f in films.groupby("fold")]
    report = cross_validation_report(films, localized(films, 0.8), n_bootstrap=200)
    found = report["auroc"]
    assert found["value"] == pytest.approx(np.mean(each))
    assert found["low"] < found["value"] < found["high"]


def test_networks_with_other_scales():
    """Networks with other scales lower the AUROC of all films together, not the mean."""
    films = scored(shift=3.0)
    report = cross_validation_report(films, localized(films, 0.8), n_bootstrap=100)
    assert report["auroc"]["value"] > report["auroc_all_together"]["value"] + 0.05


def test_bootstrap_and_delong():
    """The bootstrap interval agrees with DeLong where both are valid."""
    films = scored(n=1000, folds=2)
    found = cross_validation_report(films, localized(films, 0.8))["auroc"]
    variances = []
    for _, fold in films.groupby("fold"):
        one = auroc(fold["y_true"], fold["y_score"])
        variances.append(((one.high - one.low) / 2 / 1.959964) ** 2)
    width = 2 * 1.959964 * np.sqrt(np.sum(variances)) / 2
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.08)


def test_a_difference_and_its_p_value_follow_delong():
    films, other = scored(seed=0, n=1000), scored(seed=1, n=1000, gap=0.7)
    pair = (films, localized(films, 0.9)), (other, localized(other, 0.4))
    found = compare_recipes(*pair, n_bootstrap=2000)
    delong = compare_auroc(films["y_true"], films["y_score"], other["y_score"])
    assert found["auroc_all_together"]["p"] == delong.p < 0.05
    assert found["auroc"]["value"] == pytest.approx(delong.difference, abs=0.01)
    assert np.log10(found["auroc"]["p"]) == pytest.approx(np.log10(delong.p), abs=1.5)
    assert found["hit_rate"]["low"] > 0.3


def test_auroc_within_a_view():
    """Scores that know the view alone have no AUROC within it; the difference follows."""
    films, other = scored(seed=0, n=1000), scored(seed=1, n=1000, gap=0.0)
    view = np.where(np.random.default_rng(2).random(1000) < 0.2 + 0.6 * films["y_true"], "AP", "PA")
    other["y_score"] = np.where(view == "AP", 1.0, 0.0) + other["y_score"] * 1e-3
    films, other = films.assign(view=view), other.assign(view=view)
    films.loc[(films["fold"] == 1) & (films.index < 20), "view"] = "LL"  # in one fold only
    films.loc[(films["view"] == "LL"), "y_true"] = 0
    other = other.assign(view=films["view"], y_true=films["y_true"])
    report = cross_validation_report(other, localized(other, 0.8), n_bootstrap=200)
    assert report["auroc"]["value"] > 0.75
    assert list(report["auroc_within"]) == ["AP", "PA"]
    for found in report["auroc_within"].values():
        assert found["low"] < 0.5 < found["high"]
    maps = localized(films, 0.8)
    gaps = compare_recipes((films, maps), (other, localized(other, 0.8)), n_bootstrap=200)
    for view, gap in gaps["auroc_within"].items():
        part = films[films["view"] == view]
        own = np.mean([auroc(f["y_true"], f["y_score"]).value for _, f in part.groupby("fold")])
        assert gap["value"] == pytest.approx(own - report["auroc_within"][view]["value"])
        assert gap["p"] < 0.01


def test_the_same_recipe_twice_does_not_differ():
    films = scored()
    pair = films, localized(films, 0.8)
    found = compare_recipes(pair, pair, n_bootstrap=50)
    assert found["auroc"] == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert found["auroc_all_together"]["p"] == 1.0


def test_order_of_rows():
    """The order of rows does not matter but other folds are refused."""
    films = scored()
    pair = films, localized(films, 0.8)
    shuffled = tuple(table.sample(frac=1, random_state=0) for table in pair)
    assert compare_recipes(pair, shuffled, n_bootstrap=20)["auroc"]["value"] == 0
    seeds = tuple(pd.concat([one, one.assign(fold=one["fold"] + 100)]) for one in pair)
    shuffled = tuple(one.sample(frac=1, random_state=0) for one in seeds)
    assert compare_recipes(seeds, shuffled, n_bootstrap=20)["auroc"]["value"] == 0
    other = scored(folds=4)
    with pytest.raises(ValueError, match="differ in fold"):
        compare_recipes(pair, (other, localized(other, 0.8)), n_bootstrap=20)


def test_the_report_compares_the_model_with_baselines():
    films = scored()
    report = cross_validation_report(films, localized(films, 0.9), n_bootstrap=300)
    assert report["n"] == 400
    assert report["baselines"]["view"]["model_minus_baseline"]["low"] > 0
    assert report["maps"]["hit_rate_minus_fixed_point"]["low"] > 0
    sensitivity = films.loc[films["y_true"] == 1, "predicted"].mean()
    assert report["sensitivity"]["value"] == pytest.approx(sensitivity)


def test_unknown_patients(tmp_path):
    """Films whose patients are not known count as patients of their own."""
    run = write_run(tmp_path / "fold-1", films=120)
    run.write_table("images.csv", run.images.drop(columns="patient_id"))
    films, maps = out_of_fold_films([run]), out_of_fold_maps([run])
    assert (films["patient_id"] == films["image_id"]).all()
    assert (maps["patient_id"] == maps["image_id"]).all()
    report = cross_validation_report(films, maps, n_bootstrap=20)
    assert report["sensitivity"]["n"] == films["y_true"].sum()


def test_the_folds_of_two_seeds_are_folds_of_their_own(tmp_path):
    for seed in ("first", "second"):
        write_run(tmp_path / seed / "fold-1")
    films, maps = read([tmp_path / "first", tmp_path / "second"])
    assert films["fold"].unique().tolist() == maps["fold"].unique().tolist() == [1, 101]
    assert (films["image_id"].value_counts() == 2).all()
    with pytest.raises(FileNotFoundError, match="third: no fold"):
        read([tmp_path / "third"])
