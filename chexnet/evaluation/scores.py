"""Evaluates the scores of a run: AUROC, calibration, operating points, subgroups, baselines.

Thresholds and temperature are chosen on validation films, baselines are fitted on training films.
Test films are used for evaluation only.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics
from tqdm.auto import tqdm

from chexnet.auroc import N_BOOTSTRAP, auroc, bootstrap, compare_auroc, estimate, no_estimate
from chexnet.evaluation.baselines import BASELINES, Baseline, known, plausible_age
from chexnet.evaluation.calibration import (
    apply_temperature,
    calibration_errors,
    fit_temperature,
    reliability_table,
)
from chexnet.evaluation.operating_points import RULES, choose_thresholds, decision_curve, rates_at
from chexnet.runs import Run

FEWEST = 10  # films of either class below which the AUROC of a subgroup is not reported
_AGE_BANDS = {"under 40": (0, 40), "40 to 59": (40, 60), "60 and over": (60, 200)}


def evaluate(run: Run, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> dict:
    """Evaluates the scores of a run and writes ``metrics.json``.

    Args:
        run: with ``images`` (the training films too) and ``predictions``.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        `Run.metrics`: under ``classes``, by class name, of the films that have a label, ``val`` and
        ``test`` (films, prevalence, AUROC with DeLong's interval and by patient),
        ``average_precision``, ``operating_points``, ``calibration``, ``decision_curve``,
        ``subgroups`` and ``baselines``; with several classes ``overall`` (macro and micro average).
        A number that is not available is ``None`` with a
        ``reason``. What `evaluate_maps` wrote (``localization``) is kept, unless scores or maps
        have changed since.

    Raises:
        ValueError: a class has no test film with a label.

    Example:
        >>> from chexnet.evaluation import evaluate
        >>> from chexnet.runs import Run
        >>> metrics = evaluate(Run("output/demo"), n_bootstrap=20)
        >>> sorted(metrics["classes"]["Pneumonia"]["test"]["auroc"])
        ['high', 'low', 'value']
    """
    made_from = {name: run.fingerprint(name) for name in ("predictions.csv", "images.csv")}
    train = run.images.query("split == 'train'")
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    classes, tests = {}, []
    for name in run.class_names:
        val, test = run.scored_films(name)
        classes[name] = _evaluate_class(name, train, val, test, **settings)
        tests.append(test)
    metrics = {"bootstrap": {"unit": "patient", **settings}, "classes": classes}
    if len(tests) > 1:
        metrics["overall"] = average_auroc(pd.concat(tests), **settings)
    run.write_metrics(metrics, made_from)
    return run.metrics


def _evaluate_class(
    name: str, train: pd.DataFrame, val: pd.DataFrame, test: pd.DataFrame, **settings: int
) -> dict:
    y, score = test["y_true"].to_numpy(), test["y_score"].to_numpy()
    patients = test["patient_id"].to_numpy()
    result: dict[str, Any] = {
        split: summarize_auroc(films, **settings) for split, films in (("val", val), ("test", test))
    }
    if y.any():
        result["average_precision"] = average_precision(y, score, patients, **settings)
    else:
        result["average_precision"] = no_estimate("no positive films")
    if "reason" in result["val"]:  # without both classes nothing can be chosen
        reason = f"validation has {result['val']['reason']}"
        for part in ("operating_points", "calibration", "decision_curve"):
            result[part] = {"reason": reason}
    else:
        result["operating_points"] = _operating_points(val, y, score)
        temperature = fit_temperature(val["y_true"], val["y_score"])
        calibrated = apply_temperature(score, temperature)
        result["calibration"] = {"temperature": temperature, "fitted_on": "val"}
        for when, probability in (("before", score), ("after", calibrated)):
            errors = calibration_errors(y, probability, patients, **settings)
            bins = reliability_table(y, probability).to_dict("records")
            result["calibration"][when] = errors | {"reliability": bins}
        result["decision_curve"] = decision_curve(y, calibrated, patients, **settings)
    result["subgroups"] = _subgroups(test, **settings)
    result["baselines"] = {
        key: _compare_baseline(baseline, name, train, test, **settings)
        for key, baseline in BASELINES.items()
    }
    return result


def summarize_auroc(films: pd.DataFrame, *, fewest: int = 1, **settings: int) -> dict:
    """Number of films, and the AUROC with both intervals; or ``None`` and a ``reason``.

    There is none with fewer than ``fewest`` films of either class. A ``note`` says where the
    interval is degenerate.
    """
    y, patients = films["y_true"], films["patient_id"]
    n, n_positive = len(films), int(y.sum())
    summary: dict[str, Any] = {
        "n": n,
        "n_positive": n_positive,
        "n_patients": patients.nunique(),
        "prevalence": n_positive / n if n else None,
    }
    for count, kind in ((n_positive, "positive"), (n - n_positive, "negative")):
        if count < fewest:
            needed = f", fewer than {fewest}" if count else ""
            reason = f"{count or 'no'} {kind} film{'' if count == 1 else 's'}{needed}"
            return summary | {"auroc": None, "auroc_by_patient": None, "reason": reason}
    for key, groups in (("auroc", None), ("auroc_by_patient", patients)):
        summary[key] = auroc(y, films["y_score"], groups=groups, **settings).estimate()
    if summary["auroc"]["value"] in (0, 1):
        summary["note"] = "perfect separation (interval degenerate)"
    return summary


def average_auroc(predictions: pd.DataFrame, **settings: int) -> dict[str, dict]:
    """Macro and micro average of the AUROC over classes, with intervals by patient.

    ``predictions`` has one row a film and class. ``macro`` is the mean over the classes with films
    of both labels, ``micro`` the AUROC of all pairs of film and class.
    """
    both = predictions.groupby("class_name")["y_true"].transform("nunique") > 1
    about = {
        "prevalence": float(predictions["y_true"].mean()),
        "method": "bootstrap by patient",
    }
    found = {}
    for average, films in (("macro", predictions[both]), ("micro", predictions)):
        y, score, patients = films["y_true"], films["y_score"], films["patient_id"]
        strata = films["class_name"] if average == "macro" else None
        number = no_estimate("no films of both labels")
        if len(set(y)) > 1:
            number = auroc(y, score, groups=patients, strata=strata, **settings).estimate()
        found[average] = number | about
    return found


def average_precision(
    y_true: ArrayLike, y_score: ArrayLike, groups: ArrayLike, **settings: int
) -> dict[str, float]:
    """Average precision of scikit-learn, with an interval by patient.

    ``prevalence`` beside it is the expected value of random scores.
    """
    order = np.argsort(-np.asarray(y_score), kind="stable")
    y, score, groups = (np.asarray(values)[order] for values in (y_true, y_score, groups))
    ends = np.flatnonzero(np.r_[score[1:] != score[:-1], True])  # films that tie enter together

    # Scikit-learn's takes 8 times as long, since it sorts the films anew for each sample.
    def weighted(weight: np.ndarray) -> float:
        found = np.cumsum(weight * y)[ends]
        precision = found / np.cumsum(weight)[ends].clip(1)  # weights are whole numbers
        return (np.diff(found, prepend=0) * precision).sum() / found[-1] if found[-1] else np.nan

    samples = bootstrap(weighted, groups, **settings)
    value = sklearn_metrics.average_precision_score(y, score)
    return estimate(value, samples) | {"prevalence": float(y.mean())}


def _operating_points(val: pd.DataFrame, y: np.ndarray, score: np.ndarray) -> dict:
    points: dict[str, dict] = {}
    for rule, threshold in choose_thresholds(val["y_true"], val["y_score"]).items():
        points[rule] = {"rule": RULES[rule], "chosen_on": "val", "threshold": threshold}
        if threshold is None:
            points[rule]["reason"] = "no such threshold on validation"
        else:
            points[rule] |= rates_at(y, score, threshold)
    return points


def _subgroups(test: pd.DataFrame, **settings: int) -> list[dict]:
    """AUROC among films of one view, sex or age band, and against one kind of negatives."""
    positive = test["y_true"] == 1
    parts = []
    for column in ("view", "sex"):
        if column in test:
            values = known(test[column])
            parts += [(column, value, values == value) for value in sorted(values.unique())]
    if "age" in test:
        age = plausible_age(test["age"])
        parts += [
            ("age", band, age.between(low, high, inclusive="left"))
            for band, (low, high) in _AGE_BANDS.items()
        ]
        parts += [("age", "unknown", age.isna())] if age.isna().any() else []
    if "detailed_class" in test:
        kinds = known(test["detailed_class"])
        parts += [
            ("negatives", kind, positive | (kinds == kind))
            for kind in sorted(kinds[~positive].unique())
        ]
    return [
        {"by": by, "group": group} | summarize_auroc(test[inside], fewest=FEWEST, **settings)
        for by, group, inside in tqdm(parts, desc="subgroups", unit=" subgroups", delay=2)
    ]


def _compare_baseline(
    baseline: Baseline, name: str, train: pd.DataFrame, test: pd.DataFrame, **settings: int
) -> dict:
    """AUROC of a baseline on test films, and the model's difference from it."""
    missing = [column for column in [*baseline.columns, name] if column not in train]
    if missing:
        return {"auroc": None, "reason": f"images.csv has no column {missing[0]}"}
    if train[name].nunique() < 2 or test["y_true"].nunique() < 2:
        return {"auroc": None, "reason": "training or test films are all of one class"}
    score = baseline.scores(train, test, name)
    if len(np.unique(score)) < 2:
        return {"auroc": None, "reason": "the same for every film"}
    groups = test["patient_id"]
    gap = compare_auroc(test["y_true"], test["y_score"], score, groups=groups, **settings)
    summary = summarize_auroc(test.assign(y_score=score), **settings)
    return summary | {"model_minus_baseline": gap.estimate()}
