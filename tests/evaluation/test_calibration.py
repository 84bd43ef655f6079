import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from chexnet.auroc import auroc
from chexnet.evaluation import calibrated_scores, calibration, evaluate
from chexnet.evaluation.calibration import (
    apply_temperature,
    calibration_errors,
    fit_temperature,
    reliability_table,
)
from chexnet.runs import Run
from tests.made_up_run import change_scores, write_run


def films(n=4000, sureness=1.0, seed=0):
    """Labels drawn from probabilities, whose logits are then multiplied."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.8, 1.6, size=n).clip(0.01, 0.99)
    y = (rng.random(n) < probability).astype(int)
    return y, expit(sureness * logit(probability))


@pytest.mark.parametrize("sureness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_scores_that_are_too_sure(sureness):
    assert fit_temperature(*films(sureness=sureness)) == pytest.approx(sureness, rel=0.08)


def test_bounds_of_the_temperature():
    """Scores that are always right want a temperature of 0, always wrong ones an infinite one."""
    assert fit_temperature([0, 1], [0.4, 0.6]) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature([0, 1], [0.6, 0.4]) == pytest.approx(20, rel=1e-3)


def test_no_other_temperature_makes_the_labels_likelier():
    y, score = films(n=500, sureness=2.0)
    best = fit_temperature(y, score)
    losses = [log_loss(y, apply_temperature(score, best * change)) for change in (0.98, 1, 1.02)]
    assert losses[1] == min(losses)


def test_temperature_one():
    """Temperature 1 changes nothing, and no temperature changes the order."""
    y, score = films(n=500)
    assert apply_temperature(score, 1.0) == pytest.approx(score, abs=1e-12)
    assert apply_temperature(score.astype(np.float32), 1.0).dtype == np.float64
    assert auroc(y, apply_temperature(score, 2.5)).value == auroc(y, score).value


def test_scores_of_exactly_0_and_1_stay_finite():
    y, score = np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 0.0, 1.0])
    temperature = fit_temperature(y, score)
    assert np.isfinite(temperature)
    assert np.isfinite(apply_temperature(score, temperature)).all()


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        fit_temperature([1, 1], [0.2, 0.3])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        fit_temperature([0, 1], [0.2, 1.3])
    with pytest.raises(ValueError, match="temperature=0: expected a number > 0"):
        apply_temperature([0.2], 0)


def test_the_errors_are_the_ones_worked_by_hand(monkeypatch):
    # Two bins of two films: mean .2 against 0 of 2, mean .8 against 1 of 2.
    monkeypatch.setattr(calibration, "BINS", 2)
    errors = calibration_errors([0, 0, 1, 0], [0.1, 0.3, 0.7, 0.9], range(4), n_bootstrap=20)
    assert errors["ece"]["value"] == pytest.approx((0.2 * 2 + 0.3 * 2) / 4)
    assert errors["brier"]["value"] == pytest.approx((0.01 + 0.09 + 0.09 + 0.81) / 4)


def test_brier_and_bins_are_those_of_scikit_learn():
    y, score = films(n=1003)
    errors = calibration_errors(y, score, range(len(y)), n_bootstrap=5)
    assert errors["brier"]["value"] == pytest.approx(brier_score_loss(y, score), abs=1e-12)
    observed, predicted = calibration_curve(y, score, n_bins=10, strategy="quantile")
    table = reliability_table(y, score)
    assert table["observed"].to_numpy() == pytest.approx(observed, abs=1e-12)
    assert table["probability"].to_numpy() == pytest.approx(predicted, abs=1e-12)
    weighted = (table["n"] * np.abs(observed - predicted)).sum() / 1003
    assert errors["ece"]["value"] == pytest.approx(weighted, abs=1e-12)


def test_bins():
    """Bins hold equal numbers of films and equal scores share one."""
    y, score = films(n=1000)
    assert reliability_table(y, score)["n"].tolist() == [100] * 10
    tied = np.where(score < np.median(score), 0.25, score)
    assert reliability_table(y, tied)["n"].tolist() == [500] + [100] * 5
    constant = reliability_table(y, np.full(1000, 0.3))
    assert constant["n"].tolist() == [1000]
    assert constant["low"][0] < constant["observed"][0] < constant["high"][0]


def test_a_calibrated_model_stays_within_what_chance_does():
    y, score = films(n=300)
    ece = calibration_errors(y, score, range(len(y)), n_bootstrap=300)["ece"]
    assert 0 < ece["if_calibrated"]["mean"] < ece["if_calibrated"]["high"]
    assert ece["value"] < ece["if_calibrated"]["high"]


def test_overconfident_scores():
    """Overconfident scores are miscalibrated beyond chance; scaling corrects them."""
    y, score = films(n=3000, sureness=3.0)
    before = calibration_errors(y, score, range(len(y)), n_bootstrap=200)
    after = calibration_errors(y, apply_temperature(score, 3.0), range(len(y)), n_bootstrap=200)
    assert before["ece"]["low"] > before["ece"]["if_calibrated"]["high"]
    assert after["ece"]["value"] < after["ece"]["if_calibrated"]["high"]
    assert after["brier"]["high"] < before["brier"]["value"]


def test_ece_of_a_calibrated_model():
    """100 films of probability 1/2: |positives - 50| has the mean 3.98 and the quantile 11."""
    y, half = np.arange(100) % 2, np.full(100, 0.5)
    found = calibration_errors(y, half, range(100), n_bootstrap=4000)["ece"]["if_calibrated"]
    assert found["mean"] == pytest.approx(0.0398, abs=0.002)
    assert found["high"] == pytest.approx(0.11, abs=0.005)


def test_seed_of_the_errors():
    """The same seed gives the same intervals, another one others."""
    y, score = films(n=100)
    first, again, other = (
        calibration_errors(y, score, range(100), n_bootstrap=20, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first["brier"]["low"] != other["brier"]["low"]
    assert first["ece"]["if_calibrated"] != other["ece"]["if_calibrated"]


def test_films_of_few_patients_widen_the_interval():
    y, score = films(n=200)
    y, score = np.tile(y, 5), np.tile(score, 5)
    alone = calibration_errors(y, score, range(len(y)), n_bootstrap=300)["brier"]
    grouped = calibration_errors(y, score, np.tile(np.arange(200), 5), n_bootstrap=300)["brier"]
    assert grouped["high"] - grouped["low"] > 1.8 * (alone["high"] - alone["low"])


def temperature_of(run, name="Pneumonia"):
    (temperature,) = calibrated_scores(run, class_name=name)["temperature"].unique()
    return temperature


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("output") / "run", classes=("Pneumonia", "Edema"))
    evaluate(run, n_bootstrap=20)
    return run


@pytest.mark.parametrize("name", ["Pneumonia", "Edema"])
def test_the_temperature_is_fitted_on_validation(run, name):
    films = run.predictions
    val = films[(films["split"] == "val") & (films["class_name"] == name)]
    reopened = Run(run.folder)
    assert temperature_of(reopened, name) == fit_temperature(val["y_true"], val["y_score"])


def test_the_saved_temperature_makes_probabilities_of_the_scores(run):
    table = calibrated_scores(run, class_name="Edema")
    assert set(table["class_name"]) == {"Edema"}
    assert set(table["split"]) == {"val", "test"}
    assert table.index.equals(pd.RangeIndex(len(table)))
    temperature = temperature_of(run, "Edema")
    assert temperature != temperature_of(run)
    expected = expit(logit(table["y_score"]) / temperature)
    assert table["probability"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)
    assert calibrated_scores(run)["class_name"].eq("Pneumonia").all()


def test_the_report_judges_those_very_probabilities(run):
    test = calibrated_scores(run).query("split == 'test'")
    after = run.metrics["classes"]["Pneumonia"]["calibration"]["after"]
    expected = brier_score_loss(test["y_true"], test["probability"])
    assert after["brier"]["value"] == pytest.approx(expected, abs=1e-12)


def test_a_run_without_a_temperature_says_why(run, tmp_path):
    with pytest.raises(ValueError, match=r"class_name=.Mass.: expected one of .*Edema"):
        calibrated_scores(run, class_name="Mass")
    bare = write_run(tmp_path / "bare", films=60)
    change_scores(bare, predictions=bare.read_table("predictions.csv").assign(y_true=0))
    with pytest.raises(ValueError, match=r"no temperature for .Pneumonia., .* films of both"):
        calibrated_scores(bare)


def test_after_new_scores_the_temperature_is_fitted_again(tmp_path):
    run = write_run(tmp_path / "run", signal=0.5)
    evaluate(run, n_bootstrap=5)
    scores = run.read_table("predictions.csv")
    doubled = expit(2 * logit(scores["y_score"]))
    before = temperature_of(run)
    run.write_table("predictions.csv", scores.assign(y_score=doubled))
    assert temperature_of(run) == pytest.approx(2 * before, rel=1e-4)
