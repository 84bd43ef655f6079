import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from chexnet.auroc import bootstrap
from chexnet.auroc.intervals import percentile_interval
from chexnet.evaluation import choose_thresholds
from chexnet.evaluation.operating_points import decision_curve, rates_at

# Positive films score .2 .6 .7 .9, negative ones .1 .3 .5 .8.
Y = np.array([0, 1, 0, 0, 1, 1, 0, 1])
SCORE = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9])


def test_thresholds_are_the_ones_worked_by_hand():
    # Youden: at 0.6 sensitivity 3/4 and specificity 3/4, J = 1/2, nowhere more.
    # Sensitivity 0.9 of four positives means all four: 0.2. Specificity 0.9 means all four: 0.9.
    assert choose_thresholds(Y, SCORE) == {
        "youden": 0.6,
        "sensitivity_0.9": 0.2,
        "specificity_0.9": 0.9,
    }


def test_nine_of_ten_is_ninety_percent_exactly():
    score = np.arange(20) / 20
    y = (np.arange(20) % 2 == 1).astype(int)  # positives 0.05 .15 … .95, negatives 0 .1 … .9
    thresholds = choose_thresholds(y, score)
    assert thresholds["sensitivity_0.9"] == 0.15  # nine of ten positives
    assert thresholds["specificity_0.9"] == 0.85  # only 0.9 of ten negatives lies above
    assert rates_at(y, score, 0.15)["sensitivity"]["value"] == 0.9
    assert rates_at(y, score, 0.85)["specificity"]["value"] == 0.9


def test_of_equally_good_thresholds_the_higher_is_taken():
    # J is 1/2 at 0.8 (sensitivity 1/2, specificity 1) and at 0.4 (1, 1/2).
    assert choose_thresholds([0, 1, 0, 1], [0.1, 0.4, 0.6, 0.8])["youden"] == 0.8


def test_scores_no_better_than_chance():
    """Scores no better than chance still get a finite threshold."""
    thresholds = choose_thresholds([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4])
    assert np.isfinite(thresholds["youden"])
    assert thresholds["specificity_0.9"] is None  # the highest score is a negative film's


def test_validation_of_one_class_chooses_nothing():
    with pytest.raises(ValueError, match="both classes, but all 3 labels are equal"):
        choose_thresholds([1, 1, 1], [0.1, 0.2, 0.3])


def test_rates_are_those_of_the_confusion_matrix():
    rates = rates_at(Y, SCORE, 0.6)
    (tn, fp), (fn, tp) = confusion_matrix(Y, SCORE >= 0.6)
    assert [rates[key] for key in ("true_positives", "false_positives")] == [tp, fp] == [3, 1]
    assert [rates[key] for key in ("false_negatives", "true_negatives")] == [fn, tn] == [1, 3]
    assert rates["sensitivity"]["value"] == rates["specificity"]["value"] == 0.75
    assert rates["ppv"]["value"] == rates["npv"]["value"] == 0.75
    # Wilson, 3 of 4: centre (3 + 1.92073) / 7.84146,
    # half width 1.959964 · sqrt(3 · 1 / 4 + 0.96036) / 7.84146.
    assert rates["ppv"]["low"] == pytest.approx(0.627527 - 0.326885, abs=1e-5)
    assert rates["ppv"]["high"] == pytest.approx(0.627527 + 0.326885, abs=1e-5)
    assert rates["ppv"]["n"] == 4


def test_a_share_of_nothing_is_none_with_the_reason():
    rates = rates_at(Y, SCORE, 2.0)
    assert rates["ppv"]["value"] is None
    assert rates["ppv"]["reason"] == "no film predicted positive"
    assert rates["sensitivity"]["value"] == 0
    assert rates_at([0, 0], [0.1, 0.9], 0.5)["sensitivity"]["reason"] == "no positive film"


def test_net_benefit_is_the_one_worked_by_hand():
    rows = {row["probability"]: row for row in decision_curve(Y, SCORE, range(len(Y)))}
    # Acting at 0.5 calls .5 .6 .7 .8 .9: three true, two false of eight, at odds of 1.
    assert rows[0.5]["model"] == pytest.approx(3 / 8 - 2 / 8)
    assert rows[0.5]["treat_all"] == pytest.approx(0)
    # At 0.2 odds are 1/4; all but .1 are called: four true, three false.
    assert rows[0.2]["model"] == pytest.approx(4 / 8 - 3 / 8 / 4)
    assert rows[0.2]["treat_all"] == pytest.approx(1 / 2 - 1 / 2 / 4)
    assert len(rows) == 19
    # Two of eight positive, at 0.2: 2/8 - 6/8 / 4.
    rare = decision_curve([1, 1, 0, 0, 0, 0, 0, 0], SCORE, range(len(Y)), n_bootstrap=1)
    assert rare[3]["probability"] == 0.2
    assert rare[3]["treat_all"] == pytest.approx(2 / 8 - 6 / 8 / 4)


def test_interval_of_net_benefit():
    """The interval of the net benefit is that of its patients drawn by hand."""
    rng = np.random.default_rng(0)
    y, patients = (rng.random(80) < 0.4).astype(int), rng.integers(30, size=80)
    probability = (0.3 * y + 0.7 * rng.random(80)).round(2)
    slow = []
    for weights in bootstrap(lambda weight: weight, patients, n_bootstrap=60, seed=3):
        rows = np.repeat(np.arange(80), weights.astype(int))
        again = decision_curve(y[rows], probability[rows], rows, n_bootstrap=1)
        slow.append([row["model"] for row in again])
    curve = decision_curve(y, probability, patients, n_bootstrap=60, seed=3)
    for column, row in zip(np.transpose(slow), curve, strict=True):
        assert (row["low"], row["high"]) == pytest.approx(percentile_interval(column), abs=1e-12)
        assert row["low"] <= row["model"] <= row["high"]
