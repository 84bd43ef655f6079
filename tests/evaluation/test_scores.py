import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from chexnet.auroc import auroc, bootstrap
from chexnet.auroc.intervals import percentile_interval
from chexnet.evaluation import evaluate
from chexnet.evaluation.scores import average_precision, summarize_auroc
from tests.made_up_run import change_scores, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("output") / "run")


@pytest.fixture(scope="module")
def metrics(run):
    return evaluate(run, n_bootstrap=200)


@pytest.fixture(scope="module")
def found(metrics):
    return metrics["classes"]["Pneumonia"]


def of_split(run, split):
    films = run.predictions
    return films[films["split"] == split]


def rewrite(run, films):
    columns = ["image_id", "split", "class_name", "y_true", "y_score"]
    change_scores(run, predictions=films[columns])


def everything(value):
    """Every leaf of nested JSON."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from everything(inner)
    else:
        yield value


def test_metrics_json_holds_what_was_returned_and_no_nan(run, metrics):
    text = (run.folder / "metrics.json").read_text()
    assert {**json.loads(text), "made_from": None} == {**metrics, "made_from": None}
    assert "NaN" not in text
    assert {type(leaf) for leaf in everything(metrics)} <= {int, float, str, type(None)}


def test_the_auroc_of_each_split_is_that_of_its_films(run, found):
    for split in ("val", "test"):
        films = of_split(run, split)
        y, score, patients = films["y_true"], films["y_score"], films["patient_id"]
        delong, clustered = auroc(y, score), auroc(y, score, groups=patients, n_bootstrap=200)
        assert found[split]["auroc"] == {
            "value": delong.value,
            "low": delong.low,
            "high": delong.high,
        }
        assert found[split]["auroc_by_patient"]["low"] == clustered.low
        assert found[split]["n"] == len(films)
        assert found[split]["n_patients"] == patients.nunique()
        assert found[split]["prevalence"] == pytest.approx(y.mean())


def test_average_precision(run, found):
    """Average precision is scikit-learn's beside the prevalence."""
    films = of_split(run, "test")
    expected = average_precision_score(films["y_true"], films["y_score"])
    part = found["average_precision"]
    assert part["value"] == pytest.approx(expected, abs=1e-12)
    assert part["prevalence"] < part["low"] < part["value"] < part["high"]


@pytest.mark.parametrize("decimals", [6, 1])
def test_interval_of_average_precision(decimals):
    """The interval of average precision is that of scikit-learn with weights."""
    rng = np.random.default_rng(0)
    y = (rng.random(60) < 0.3).astype(int)
    score, patients = (rng.normal(size=60) + y).round(decimals), rng.integers(25, size=60)
    slow = [
        average_precision_score(y, score, sample_weight=weights) if (weights * y).any() else np.nan
        for weights in bootstrap(lambda weight: weight, patients, n_bootstrap=100)
    ]
    result = average_precision(y, score, patients, n_bootstrap=100)
    assert (result["low"], result["high"]) == pytest.approx(percentile_interval(slow), abs=1e-12)


def test_thresholds_come_from_validation_and_counts_from_test(run, found):
    validation, test = of_split(run, "val"), of_split(run, "test")
    point = found["operating_points"]["youden"]
    assert point["threshold"] in validation["y_score"].to_numpy()
    assert point["threshold"] not in test["y_score"].to_numpy()
    called = test["y_score"] >= point["threshold"]
    assert point["true_positives"] == (called & (test["y_true"] == 1)).sum()
    total = sum(point[key] for key in point if key.endswith(("positives", "negatives")))
    assert total == len(test)
    keeps = found["operating_points"]["sensitivity_0.9"]["threshold"]
    assert (validation.loc[validation["y_true"] == 1, "y_score"] >= keeps).mean() >= 0.9


def test_test_films_have_no_say_in_what_is_chosen(run, found, tmp_path):
    """Test labels turned, scores mixed up and half the films dropped: every choice stays."""
    other = write_run(tmp_path / "run")
    films = other.predictions
    test = films["split"] == "test"
    films.loc[test, "y_true"] = 1 - films.loc[test, "y_true"]
    mixed = np.random.default_rng(1).permutation(films.loc[test, "y_score"])
    films.loc[test, "y_score"] = mixed
    rewrite(other, films.drop(index=films.index[test][::2]))
    changed = evaluate(other, n_bootstrap=20)["classes"]["Pneumonia"]
    for rule, point in found["operating_points"].items():
        assert changed["operating_points"][rule]["threshold"] == point["threshold"]
    assert changed["calibration"]["temperature"] == found["calibration"]["temperature"]
    assert changed["test"] != found["test"]


def test_baselines_are_fitted_on_training_films_alone(run, found, tmp_path):
    # With the views of test and validation turned, what training taught is wrong for test.
    other = write_run(tmp_path / "run")
    images = other.images
    held = images["split"] != "train"
    turned = images.loc[held, "view"].map({"AP": "PA", "PA": "AP"})
    images.loc[held, "view"] = turned
    other.write_table("images.csv", images)
    changed = evaluate(other, n_bootstrap=20)["classes"]["Pneumonia"]["baselines"]["view"]
    value = found["baselines"]["view"]["auroc"]["value"]
    assert value > 0.6
    assert changed["auroc"]["value"] == pytest.approx(1 - value, abs=1e-12)


def test_what_training_does_not_show_no_baseline_knows(tmp_path):
    run = write_run(tmp_path / "run", films=200)
    images = run.images
    images.loc[images["split"] == "train", "view"] = "AP"
    run.write_table("images.csv", images)
    baseline = evaluate(run, n_bootstrap=20)["classes"]["Pneumonia"]["baselines"]["view"]
    assert baseline["reason"] == "the same for every film"


def test_the_model_is_compared_with_the_baselines_paired(found):
    for baseline in ("view", "view_sex_age"):
        gap = found["baselines"][baseline]["model_minus_baseline"]
        expected = found["test"]["auroc"]["value"] - found["baselines"][baseline]["auroc"]["value"]
        assert gap["value"] == pytest.approx(expected, abs=1e-12)
        assert gap["low"] > 0
        assert gap["p"] < 0.001


def test_model_that_knows_the_view_only(tmp_path):
    """A model that has learnt only the view is seen at a glance."""
    run = write_run(tmp_path / "run", films=900)
    films = run.predictions
    noise = np.random.default_rng(0).random(len(films)) / 1000
    rewrite(run, films.assign(y_score=0.3 + 0.4 * (films["view"] == "AP") + noise))
    found = evaluate(run, n_bootstrap=100)["classes"]["Pneumonia"]
    assert found["test"]["auroc"]["low"] > 0.6
    for group in found["subgroups"]:
        if group["by"] == "view":
            assert group["auroc"]["low"] < 0.5 < group["auroc"]["high"]
    gap = found["baselines"]["view"]["model_minus_baseline"]
    assert gap["low"] < 0 < gap["high"]


def test_subgroups_hold_their_films_and_negatives_are_told_apart(run, found):
    test = of_split(run, "test")
    groups = {(group["by"], group["group"]): group for group in found["subgroups"]}
    assert set(groups) == {
        ("view", "AP"),
        ("view", "PA"),
        ("sex", "F"),
        ("sex", "M"),
        ("age", "under 40"),
        ("age", "40 to 59"),
        ("age", "60 and over"),
        ("negatives", "Normal"),
        ("negatives", "No Lung Opacity / Not Normal"),
    }
    normal = test[(test["y_true"] == 1) | (test["detailed_class"] == "Normal")]
    part = groups["negatives", "Normal"]
    assert (part["n"], part["n_positive"]) == (len(normal), test["y_true"].sum())
    assert part["auroc"]["value"] == auroc(normal["y_true"], normal["y_score"]).value
    for by in ("view", "sex", "age"):
        assert sum(group["n"] for (of, _), group in groups.items() if of == by) == len(test)


def summary_of(y, score, **settings):
    films = pd.DataFrame({"patient_id": range(len(y)), "y_true": y, "y_score": score})
    return summarize_auroc(films, **settings)


def test_too_few_positives_give_the_reason_and_never_a_number():
    y, score = np.repeat([0, 1], [30, 9]), np.arange(39.0)
    block = summary_of(y, score, fewest=10)
    assert block["auroc"] is None
    assert block["auroc_by_patient"] is None
    assert block["reason"] == "9 positive films, fewer than 10"
    assert (block["n"], block["n_positive"]) == (39, 9)
    assert summary_of(1 - y, score, fewest=10)["reason"].startswith("9 negative")
    assert summary_of(y[:5], score[:5])["reason"] == "no positive films"
    assert summary_of([], [])["prevalence"] is None


def test_an_interval_without_width_is_not_left_without_a_word():
    y = np.repeat([0, 1], 20)
    block = summary_of(y, np.arange(40.0), n_bootstrap=20)
    assert block["auroc"] == block["auroc_by_patient"] == {"value": 1, "low": 1, "high": 1}
    assert block["note"] == "perfect separation (interval degenerate)"
    assert "note" not in summary_of(y, np.arange(40) % 19, n_bootstrap=20)


def test_calibration_is_told_before_and_after(found):
    calibration = found["calibration"]
    assert calibration["fitted_on"] == "val"
    for when in ("before", "after"):
        assert calibration[when]["brier"]["low"] < calibration[when]["brier"]["high"]
        assert sum(row["n"] for row in calibration[when]["reliability"]) == found["test"]["n"]
    assert len(found["decision_curve"]) == 19


def test_what_was_written_about_the_maps_stays(run):
    parts = {"localization": {"hit_rate": 1}, "classes": "old"}
    run.write_metrics(parts, {"maps.npz": run.fingerprint("maps.npz")})
    metrics = evaluate(run, n_bootstrap=20)
    assert run.metrics["localization"] == {"hit_rate": 1}
    assert "Pneumonia" in run.metrics["classes"]
    assert metrics == run.metrics


def test_few_positive_films(tmp_path):
    """A run with few positive films has no NaN that JSON refuses."""
    run = write_run(tmp_path / "run", films=60)
    scores = run.read_table("predictions.csv")
    first = ~scores.duplicated(["split"])
    change_scores(run, predictions=scores.assign(y_true=first.astype(int)))
    for seed in range(5):  # some draw no positive film at all
        evaluate(run, n_bootstrap=1, seed=seed)
        precision = run.metrics["classes"]["Pneumonia"]["average_precision"]
        assert precision["value"] is not None
        if precision["low"] is None:
            return
    raise AssertionError("each sample had a positive film")


def test_several_classes(tmp_path):
    """Several classes get their averages and no negatives by mistake."""
    run = write_run(tmp_path / "run", films=200, classes=("Pneumonia", "Edema"))
    metrics = evaluate(run, n_bootstrap=50)
    assert set(metrics["classes"]) == {"Pneumonia", "Edema"}
    values = [one["test"]["auroc"]["value"] for one in metrics["classes"].values()]
    assert metrics["overall"]["macro"]["value"] == pytest.approx(np.mean(values))
    assert metrics["overall"]["micro"]["low"] < metrics["overall"]["micro"]["high"]


def test_a_class_without_labels_in_validation_is_told_in_reasons(tmp_path):
    run = write_run(tmp_path / "run", films=200, classes=("Pneumonia", "Edema"))
    films = run.predictions
    unlabeled = (films["class_name"] == "Edema") & (films["split"] == "val")
    rewrite(run, films.assign(y_true=films["y_true"].where(~unlabeled)))
    classes = evaluate(run, n_bootstrap=20)["classes"]
    assert classes["Pneumonia"]["calibration"]["temperature"] > 0
    assert classes["Edema"]["test"]["auroc"]["value"] > 0.5
    for part in ("operating_points", "calibration", "decision_curve"):
        assert classes["Edema"][part] == {"reason": "validation has no positive films"}


def test_one_run_of_one_class_only_is_told_in_reasons(tmp_path):
    run = write_run(tmp_path / "run", films=120)
    rewrite(run, run.predictions.assign(y_true=0))
    found = evaluate(run, n_bootstrap=20)["classes"]["Pneumonia"]
    assert found["test"]["reason"] == "no positive films"
    assert found["operating_points"]["reason"] == "validation has no positive films"
    assert found["calibration"]["reason"] == "validation has no positive films"
    assert found["average_precision"]["reason"] == "no positive films"
    assert found["baselines"]["view"]["auroc"] is None


def test_study_without_facts(tmp_path):
    """A study without view, sex, age or patients is evaluated all the same."""
    run = write_run(tmp_path / "run", films=200)
    facts = ["patient_id", "view", "sex", "age", "detailed_class"]
    run.write_table("images.csv", run.images.drop(columns=facts))
    found = evaluate(run, n_bootstrap=20)["classes"]["Pneumonia"]
    assert found["subgroups"] == []
    assert found["test"]["n_patients"] == found["test"]["n"]
    assert found["baselines"]["view"]["reason"] == "images.csv has no column view"


def test_one_view_for_all_is_no_baseline_but_a_reason(tmp_path):
    run = write_run(tmp_path / "run", films=200, view="AP")
    baseline = evaluate(run, n_bootstrap=20)["classes"]["Pneumonia"]["baselines"]["view"]
    assert baseline["auroc"] is None
    assert baseline["reason"] == "the same for every film"


def test_a_run_without_test_films_is_refused_by_name(tmp_path):
    run = write_run(tmp_path / "run", films=60)
    films = run.predictions
    rewrite(run, films[films["split"] == "val"])
    with pytest.raises(
        ValueError, match=r"predictions.csv: no test film with a label of 'Pneumonia'"
    ):
        evaluate(run, n_bootstrap=20)
