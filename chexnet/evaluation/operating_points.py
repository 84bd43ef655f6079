"""Decision thresholds, chosen on validation films, and what they do on test films."""

import numpy as np
import pandas as pd
from sklearn import metrics as sklearn_metrics

from chexnet.auroc import N_BOOTSTRAP, bootstrap_patients, percentile_interval, wilson_interval
from chexnet.runs import Run

TARGET = 0.9  # of the fixed-sensitivity and the fixed-specificity point
# Youden 1950: the largest sensitivity + specificity - 1. The other two are the highest and the
# lowest threshold that keep the rate.
RULES = {
    "youden": "Youden index",
    "sensitivity_0.9": "sensitivity at least 0.9",
    "specificity_0.9": "specificity at least 0.9",
}
# Chance of the finding at which one would act: 5 % (a cheap look) to 95 %.
_ACTING = np.arange(5, 100, 5) / 100


def choose_thresholds(y_true: np.ndarray, y_score: np.ndarray) -> dict[str, float | None]:
    """Chooses a threshold by each rule of `RULES`; hand it the validation split.

    A film is called positive where its score is at or above the threshold. Where two thresholds
    fulfil a rule equally, the higher one is taken.

    Args:
        y_true: ``(N,)`` labels, 0 or 1, both present.
        y_score: ``(N,)`` scores.

    Returns:
        rule to threshold; ``None`` where only calling no film positive would fulfil it.

    Raises:
        ValueError: one class only.
    """
    y_true, y_score = np.asarray(y_true), np.asarray(y_score, np.float64)
    if len(np.unique(y_true)) < 2:
        raise ValueError(
            f"thresholds need films of both classes, but all {len(y_true)} labels are equal"
        )
    false_positive_rate, sensitivity, threshold = (
        values[1:]  # the first is infinite: no film called positive
        for values in sklearn_metrics.roc_curve(y_true, y_score, drop_intermediate=False)
    )
    # Counts, not rates, decide about 0.9: 9 of 10 as a float can lie a hair beside it.
    positives = np.rint(sensitivity * (y_true == 1).sum())
    false_positives = np.rint(false_positive_rate * (y_true == 0).sum())
    sensitive = np.flatnonzero(positives >= TARGET * (y_true == 1).sum() - 1e-9)
    specific = np.flatnonzero(false_positives <= (1 - TARGET) * (y_true == 0).sum() + 1e-9)
    return {
        "youden": float(threshold[np.argmax(sensitivity - false_positive_rate)]),
        "sensitivity_0.9": float(threshold[sensitive[0]]),
        "specificity_0.9": float(threshold[specific[-1]]) if specific.size else None,
    }


def rates_at(y_true: np.ndarray, y_score: np.ndarray, threshold: float) -> dict:
    """What a threshold does on a set of films.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        y_score: ``(N,)`` scores.
        threshold: a film is called positive where its score is at or above it.

    Returns:
        the four counts, and ``sensitivity, specificity, ppv, npv``, each with ``value, low, high``
        (Wilson) and ``n``, the films it is a share of; ``None`` and a ``reason`` if there are none.
    """
    y_true = np.asarray(y_true) == 1
    called = np.asarray(y_score) >= threshold
    counts = {
        "true_positives": int((y_true & called).sum()),
        "false_positives": int((~y_true & called).sum()),
        "false_negatives": int((y_true & ~called).sum()),
        "true_negatives": int((~y_true & ~called).sum()),
    }
    tp, fp, fn, tn = counts.values()
    return counts | {
        "sensitivity": _share(tp, tp + fn, "no film is positive"),
        "specificity": _share(tn, tn + fp, "no film is negative"),
        "ppv": _share(tp, tp + fp, "no film is called positive"),
        "npv": _share(tn, tn + fn, "no film is called negative"),
    }


def decision_curve(
    y_true: np.ndarray,
    probability: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Net benefit of acting on the model, on every film, on none (Vickers & Elkin 2006).

    Net benefit is true positives less false positives at the odds of the probability at which one
    would act, per film; acting on no film has 0.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        probability: ``(N,)`` calibrated probabilities.
        groups: ``(N,)`` patient ids; ``None`` draws single films.
        n_bootstrap: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        one row a probability: ``probability``; ``model`` with its 95 % interval ``low, high``;
        ``treat_all``.
    """
    y_true, probability = np.asarray(y_true) == 1, np.asarray(probability, np.float64)
    odds = _ACTING / (1 - _ACTING)
    called = probability[:, np.newaxis] >= _ACTING
    gained = np.where(y_true[:, np.newaxis], called, -odds * called)  # (N, probabilities)
    codes, counts = bootstrap_patients(
        np.arange(len(y_true)) if groups is None else groups, n_bootstrap=n_bootstrap, seed=seed
    )
    # A mean needs only each patient's sum and number of films.
    of_patient = np.zeros((counts.shape[1], len(_ACTING)))
    np.add.at(of_patient, codes, gained)
    samples = counts @ of_patient / (counts @ np.bincount(codes))[:, np.newaxis]
    prevalence = y_true.mean()
    rows = []
    for number, acting in enumerate(_ACTING):
        low, high = percentile_interval(samples[:, number])
        rows.append(
            {
                "probability": float(acting),
                "model": float(gained[:, number].mean()),
                "low": low,
                "high": high,
                "treat_all": float(prevalence - odds[number] * (1 - prevalence)),
            }
        )
    return rows


def _share(part: int, whole: int, reason: str) -> dict:
    if whole == 0:
        return {"value": None, "low": None, "high": None, "n": 0, "reason": reason}
    low, high = wilson_interval(part, whole)
    return {"value": part / whole, "low": low, "high": high, "n": whole}


# Name of each outcome, and the label of its films.
OUTCOMES = {
    "TP": ("true positive", 1),
    "FN": ("false negative", 1),
    "TN": ("true negative", 0),
    "FP": ("false positive", 0),
}


def outcome_table(
    run: Run, *, class_name: str | None = None, threshold: float | str = "youden"
) -> tuple[pd.DataFrame, str]:
    """Which test films the model got right.

    Args:
        run: with predictions.
        class_name: which class; ``None`` is the run's first.
        threshold: a film is called positive at this score or above; or the name of a rule of
            `chexnet.evaluation.operating_points.RULES`, which is applied to validation.

    Returns:
        the predictions of the test films with ``outcome`` (TP, FN, TN or FP), one row a film; and
        a sentence with the threshold and the rule.

    Raises:
        ValueError: an unknown class or rule, no test film, or no threshold to be had.
    """
    class_name, predictions, films = scored_films(run, class_name)
    why = "given"
    if isinstance(threshold, str):
        threshold, why = chosen_threshold(run, class_name, threshold, predictions)
    films = films.assign(outcome=outcomes_at(films["y_true"], films["y_score"], threshold))
    return films, f"Decision threshold {threshold:.3g} ({why})."


def scored_films(run: Run, class_name: str | None) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """The class's name, its predictions, and those of its test films alone.

    Raises:
        ValueError: an unknown class, or no test film.
    """
    class_name = run.chosen_class(class_name)
    predictions = run.predictions.query("class_name == @class_name")
    films = predictions[predictions["split"] == "test"]
    if not len(films):
        raise ValueError(f"{run.folder / 'predictions.csv'}: no test film of {class_name!r}")
    return class_name, predictions, films


def header_text(film: pd.Series | tuple) -> str:
    """View, sex and age of a film, as far as they are known: ``PA · F · 54 y``."""
    facts = [getattr(film, name, None) for name in ("view", "sex", "age")]
    known = [fact for fact in facts if pd.notna(fact)]
    return " · ".join(fact if isinstance(fact, str) else f"{fact:.0f} y" for fact in known)


def outcomes_at(y_true: pd.Series, y_score: pd.Series, threshold: float) -> np.ndarray:
    """TP, FN, TN or FP for each film, str ``(N,)``; at the threshold itself a film is called."""
    called = np.asarray(y_score) >= threshold
    right, wrong = np.where(called, "TP", "TN"), np.where(called, "FP", "FN")
    return np.where(called == (np.asarray(y_true) == 1), right, wrong)


def chosen_threshold(
    run: Run, class_name: str, rule: str, predictions: pd.DataFrame
) -> tuple[float, str]:
    """The threshold of a rule of `RULES`, and the rule in words.

    Args:
        run: with predictions; it need not be evaluated.
        class_name: which class.
        rule: name of a rule.
        predictions: of the class, validation included.

    Raises:
        ValueError: an unknown rule, or no threshold to be had on validation.
    """
    if rule not in RULES:
        raise ValueError(f"threshold={rule!r}: expected a number or one of {sorted(RULES)}")
    val = predictions[predictions["split"] == "val"]
    try:
        chosen = choose_thresholds(val["y_true"], val["y_score"])[rule]
    except ValueError as error:
        raise ValueError(
            f"{run.folder}: no threshold can be chosen for {class_name!r}, {error}; give a number "
            "as threshold="
        ) from error
    if chosen is None:
        raise ValueError(
            f"{run.folder}: no threshold on validation has {RULES[rule]}; give a number as "
            "threshold="
        )
    return chosen, f"{RULES[rule]} on {len(val)} validation images"
