"""Our figures beside those of other people's libraries and of the literature, to 1e-9.

R's pROC stands in `test_auroc`, `pytorch-grad-cam` in `test_pytorch_grad_cam`. The package
``confidenceinterval`` is no oracle to 1e-9: it ranks in float32, and agrees to 1e-7.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from MLstatkit import Delong_test
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder
from statsmodels.stats.proportion import proportion_confint

from chexnet.auroc import auroc, compare_auroc, wilson_interval
from chexnet.evaluation import choose_thresholds
from chexnet.evaluation.baselines import view_scores
from chexnet.evaluation.calibration import calibration_errors, fit_temperature
from chexnet.evaluation.operating_points import decision_curve, rates_at
from chexnet.evaluation.scores import average_auroc, average_precision

REFERENCES = Path(__file__).parents[1] / "references"
EXACT = {"abs": 1e-9, "rel": 0}


def study(seed: int = 0, decimals: int | None = None) -> tuple[np.ndarray, ...]:
    """Labels and two scores of 300 films, with ties where they are rounded."""
    rng = np.random.default_rng(seed)
    y = (rng.random(300) < 0.3).astype(int)
    a = 1 / (1 + np.exp(-rng.normal(size=300) - 1.2 * y))
    b = 1 / (1 + np.exp(-rng.normal(size=300) - 0.7 * y))
    return (y, a, b) if decimals is None else (y, a.round(decimals), b.round(decimals))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decimals", [None, 1])
class TestAuroc:
    def test_value_is_scikit_learns(self, seed, decimals):
        y, a, _ = study(seed, decimals)
        assert auroc(y, a).value == pytest.approx(sklearn_metrics.roc_auc_score(y, a), **EXACT)

    def test_delongs_interval_and_test_are_those_of_mlstatkit(self, seed, decimals):
        y, a, b = study(seed, decimals)
        z, p, interval_a, interval_b, value_a, value_b, info = Delong_test(y, a, b)
        assert info["method"] == "delong"
        for score, value, interval in ((a, value_a, interval_a), (b, value_b, interval_b)):
            ours = auroc(y, score)
            assert (ours.value, ours.low, ours.high) == pytest.approx((value, *interval), **EXACT)
        ours = compare_auroc(y, a, b)
        # Its z is of the second less the first.
        assert (ours.z, ours.p) == pytest.approx((-z, p), **EXACT)

    def test_average_precision_is_scikit_learns(self, seed, decimals):
        y, a, _ = study(seed, decimals)
        ours = average_precision(y, a, np.arange(len(y)), n_bootstrap=2)["value"]
        assert ours == pytest.approx(sklearn_metrics.average_precision_score(y, a), **EXACT)

    def test_brier_score_is_scikit_learns(self, seed, decimals):
        y, a, _ = study(seed, decimals)
        ours = calibration_errors(y, a, range(len(y)), n_bootstrap=2)["brier"]["value"]
        assert ours == pytest.approx(sklearn_metrics.brier_score_loss(y, a), **EXACT)

    def test_youdens_threshold_is_that_of_scikit_learns_curve(self, seed, decimals):
        y, a, _ = study(seed, decimals)
        false, true, threshold = sklearn_metrics.roc_curve(y, a)
        best = (true - false).argmax()
        chosen = choose_thresholds(y, a)["youden"]
        rates = rates_at(y, a, chosen)
        gained = rates["sensitivity"]["value"] + rates["specificity"]["value"] - 1
        assert gained == pytest.approx(true[best] - false[best], **EXACT)
        assert chosen == threshold[best]


def test_macro_and_micro_are_scikit_learns():
    y, a, b = study()
    other = study(1)[0]
    parts = [
        pd.DataFrame(
            {"class_name": name, "patient_id": np.arange(300), "y_true": labels, "y_score": score}
        )
        for name, labels, score in (("one", y, a), ("two", other, b))
    ]
    table = average_auroc(pd.concat(parts), n_bootstrap=2)
    for average in ("macro", "micro"):
        expected = sklearn_metrics.roc_auc_score(np.c_[y, other], np.c_[a, b], average=average)
        assert table[average]["value"] == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("trials", [1, 7, 60, 2668])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_wilsons_interval_is_that_of_statsmodels(trials, share):
    successes = round(share * trials)
    expected = proportion_confint(successes, trials, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx(expected, **EXACT)


def test_wilson_intervals():
    """The intervals of an operating point are Wilson's of statsmodels."""
    y, a, _ = study()
    rates = rates_at(y, a, 0.6)
    called = a >= 0.6
    for rate, part, whole in (
        ("sensitivity", called & (y == 1), y == 1),
        ("specificity", ~called & (y == 0), y == 0),
        ("ppv", called & (y == 1), called),
        ("npv", ~called & (y == 0), ~called),
    ):
        expected = proportion_confint(part.sum(), whole.sum(), method="wilson")
        assert (rates[rate]["low"], rates[rate]["high"]) == pytest.approx(expected, **EXACT)


def test_temperature():
    """1 / temperature is the one coefficient of the logit, here by scikit-learn's solver."""
    y, a, _ = study()
    logit = np.log(a / (1 - a))[:, np.newaxis]
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logit, y)
    assert 1 / fit_temperature(y, a) == pytest.approx(fit.coef_[0, 0], rel=1e-5)


def test_the_view_alone_is_a_saturated_logistic_regression():
    """With one indicator a view, unpenalised maximum likelihood is the share in each view."""
    rng = np.random.default_rng(0)
    films = pd.DataFrame({"view": rng.choice(["AP", "PA", "LL"], size=600)})
    films["sick"] = (rng.random(600) < films["view"].map({"AP": 0.5, "PA": 0.2, "LL": 0.3})) * 1
    seen = OneHotEncoder().fit_transform(films[["view"]])
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12).fit(seen, films["sick"])
    expected = fit.predict_proba(seen)[:, 1]
    assert view_scores(films, films, "sick") == pytest.approx(expected, abs=1e-6)


def test_the_decision_curve_is_that_of_dcurves():
    """Recorded by ``references/make_dcurves.py``, for dcurves asks for an older pandas."""
    theirs = json.loads((REFERENCES / "dcurves.json").read_text())
    assert theirs["dcurves"] == "1.1.7"
    ours = pd.DataFrame(
        decision_curve(theirs["y"], theirs["p"], range(len(theirs["y"])), n_bootstrap=2)
    )
    assert ours["probability"].to_numpy() == pytest.approx(theirs["threshold"], **EXACT)
    assert ours["model"].to_numpy() == pytest.approx(theirs["net_benefit_p"], **EXACT)
    assert ours["treat_all"].to_numpy() == pytest.approx(theirs["net_benefit_all"], **EXACT)
