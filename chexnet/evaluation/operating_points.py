"""Decision thresholds, chosen on validation films, and what they do on test films."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics

from chexnet.auroc import bootstrap, estimate, no_estimate, wilson_interval
from chexnet.files import check_number
from chexnet.runs import Run

TARGET = 0.9  # of the fixed-sensitivity and the fixed-specificity point
# Youden 1950: the largest sensitivity + specificity - 1. The other two are the highest and the
# lowest threshold that keep the rate.
RULES = {
    "youden": "Youden index",
    "sensitivity_0.9": "sensitivity at least 0.9",
    "specificity_0.9": "specificity at least 0.9",
}
# By abbreviation, the name of an outcome and the label of its films.
OUTCOMES = {
    "TP": ("true positive", 1),
    "FN": ("false negative", 1),
    "TN": ("true negative", 0),
    "FP": ("false positive", 0),
}
_PROBABILITIES = np.arange(5, 100, 5) / 100  # thresholds of the decision curve


def choose_thresholds(y_true: ArrayLike, y_score: ArrayLike) -> dict[str, float | None]:
    """Chooses a threshold by each rule of `RULES`, on validation films.

    A film is predicted positive if its score is at or above the threshold. Of two thresholds that
    fulfil a rule equally well, the higher one is chosen.

    Args:
        y_true: ``(N,)`` labels, 0 or 1, both present.
        y_score: ``(N,)`` scores.

    Returns:
        rule to threshold; ``None`` if no threshold at or below the highest score fulfils the rule.

    Raises:
        ValueError: all labels are equal.

    Example:
        >>> from chexnet.evaluation import choose_thresholds
        >>> choose_thresholds([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])["sensitivity_0.9"]
        0.35
    """
    y_true, y_score = np.asarray(y_true), np.asarray(y_score, np.float64)
    if len(np.unique(y_true)) < 2:
        raise ValueError(
            f"thresholds need films of both classes, but all {len(y_true)} labels are equal"
        )
    false_positive_rate, sensitivity, threshold = (
        values[1:]  # the first threshold is infinite
        for values in sklearn_metrics.roc_curve(y_true, y_score, drop_intermediate=False)
    )
    # Compare counts, not rates: as a float, 9 of 10 may differ from 0.9 in the last digit.
    positives = np.rint(sensitivity * (y_true == 1).sum())
    false_positives = np.rint(false_positive_rate * (y_true == 0).sum())
    sensitive = np.flatnonzero(positives >= TARGET * (y_true == 1).sum() - 1e-9)
    specific = np.flatnonzero(false_positives <= (1 - TARGET) * (y_true == 0).sum() + 1e-9)
    return {
        "youden": float(threshold[np.argmax(sensitivity - false_positive_rate)]),
        "sensitivity_0.9": float(threshold[sensitive[0]]),
        "specificity_0.9": float(threshold[specific[-1]]) if specific.size else None,
    }


def chosen_threshold(
    run: Run, rule: str = "youden", *, class_name: str | None = None
) -> tuple[float, str]:
    """The threshold that a rule of `RULES` chooses on the validation films of a run.

    Args:
        run: with predictions; it need not be evaluated.
        rule: a key of `RULES`.
        class_name: which class; ``None`` is the run's first.

    Returns:
        the threshold, and the rule in words.

    Raises:
        ValueError: the rule or class is unknown, or no threshold can be chosen.

    Example:
        >>> from chexnet.evaluation import chosen_threshold
        >>> from chexnet.runs import Run
        >>> threshold, rule = chosen_threshold(Run("output/demo"))
        >>> rule
        'Youden index on ... validation images'
    """
    if rule not in RULES:
        raise ValueError(f"threshold={rule!r}: expected a number or one of {sorted(RULES)}")
    name = run.chosen_class(class_name)
    val, _ = run.scored_films(name)
    problem, remedy = f"{run.folder}: no threshold", "give a number as threshold="
    try:
        threshold = choose_thresholds(val["y_true"], val["y_score"])[rule]
    except ValueError as error:
        raise ValueError(f"{problem} can be chosen for {name!r}, {error}; {remedy}") from error
    if threshold is None:
        raise ValueError(f"{problem} on validation has {RULES[rule]}; {remedy}")
    return threshold, f"{RULES[rule]} on {len(val)} validation images"


def rates_at(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> dict:
    """The four counts at a threshold, and ``sensitivity, specificity, ppv, npv``.

    Each rate has ``value, low, high`` (Wilson's interval) and ``n``, the denominator; ``None`` and
    a ``reason`` if that is 0.
    """
    outcomes = outcomes_at(y_true, y_score, threshold)
    tp, fp, fn, tn = (int((outcomes == name).sum()) for name in ("TP", "FP", "FN", "TN"))
    return {
        "true_positives": tp,
        "false_positives": fp,
        "false_negatives": fn,
        "true_negatives": tn,
        "sensitivity": _proportion(tp, tp + fn, "no positive film"),
        "specificity": _proportion(tn, tn + fp, "no negative film"),
        "ppv": _proportion(tp, tp + fp, "no film predicted positive"),
        "npv": _proportion(tn, tn + fn, "no film predicted negative"),
    }


def _proportion(part: int, whole: int, reason: str) -> dict:
    if whole == 0:
        return no_estimate(reason)
    low, high = wilson_interval(part, whole)
    return {"value": part / whole, "low": low, "high": high, "n": whole}


def decision_curve(
    y_true: ArrayLike, probability: ArrayLike, groups: ArrayLike, **settings: int
) -> list[dict[str, float]]:
    """Net benefit of the model and of treating all patients (Vickers & Elkin 2006).

    Net benefit is the rate of true positives minus the rate of false positives, weighted by the
    odds of the threshold probability. Treating nobody has net benefit 0. ``probability`` must be
    calibrated. One row for each threshold probability of 0.05 to 0.95 by 0.05.
    """
    positive, odds = np.asarray(y_true) == 1, _PROBABILITIES / (1 - _PROBABILITIES)
    # How many of the threshold probabilities a film reaches.
    reached = np.searchsorted(_PROBABILITIES, probability, side="right")

    def net_benefit(weight: np.ndarray) -> np.ndarray:
        true, false = (
            np.bincount(reached, weights=weight * label, minlength=20)[::-1].cumsum()[::-1][1:]
            for label in (positive, ~positive)
        )
        return (true - odds * false) / weight.sum()

    samples = bootstrap(net_benefit, groups, **settings)
    rows = map(estimate, net_benefit(np.ones(len(positive))), samples.T)
    table = pd.DataFrame(rows).rename(columns={"value": "model"})
    table.insert(0, "probability", _PROBABILITIES)
    table["treat_all"] = positive.mean() - odds * (1 - positive.mean())
    return table.to_dict("records")


def outcomes_at(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> np.ndarray:
    """The outcome of each film at a threshold, str ``(N,)``: TP, FN, TN or FP.

    A film is predicted positive if its score is at or above the threshold.

    Example:
        >>> from chexnet.evaluation import outcomes_at
        >>> outcomes_at([1, 1, 0, 0], [0.9, 0.1, 0.2, 0.5], 0.5).tolist()
        ['TP', 'FN', 'TN', 'FP']
    """
    predicted = np.asarray(y_score) >= threshold
    correct, wrong = np.where(predicted, "TP", "TN"), np.where(predicted, "FP", "FN")
    return np.where(predicted == (np.asarray(y_true) == 1), correct, wrong)


def outcome_table(
    run: Run, *, class_name: str | None = None, threshold: float | str = "youden"
) -> tuple[pd.DataFrame, str]:
    """The test films of a run with their outcomes.

    Args:
        run: with predictions.
        class_name: which class; ``None`` is the run's first.
        threshold: a film is predicted positive if its score is at or above it; or the name of a
            rule of `RULES`, which chooses it on validation.

    Returns:
        the predictions of the test films with ``outcome`` (TP, FN, TN or FP), one row a film; and
        a sentence with the threshold and the rule.

    Raises:
        ValueError: the class or rule is unknown, there is no test film, the threshold is no
            number, or none can be chosen.

    Example:
        >>> from chexnet.evaluation import outcome_table
        >>> from chexnet.runs import Run
        >>> films, sentence = outcome_table(Run("output/demo"), threshold=0.5)
        >>> sentence
        'Decision threshold 0.5 (given).'
    """
    _, films = run.scored_films(class_name)
    rule = "given"
    if isinstance(threshold, str):
        threshold, rule = chosen_threshold(run, threshold, class_name=class_name)
    check_number("threshold", threshold)
    films = films.assign(outcome=outcomes_at(films["y_true"], films["y_score"], threshold))
    return films, f"Decision threshold {threshold:.3g} ({rule})."
