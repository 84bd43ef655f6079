"""The evidence of a run: AUROC with all that surrounds it, from the run folder alone.

Thresholds and temperature are chosen on validation films, baselines are fitted on training films,
never on test films.

AUROC over several classes: one row each, their macro and their micro average.
"""

import math

import numpy as np
import pandas as pd
from sklearn import metrics as sklearn_metrics
from tqdm.auto import tqdm

from chexnet.auroc import (
    N_BOOTSTRAP,
    auroc,
    bootstrap_auroc,
    bootstrap_patients,
    compare_auroc,
    percentile_interval,
    resample,
)
from chexnet.evaluation.baselines import BASELINES, Baseline, known, plausible_age
from chexnet.evaluation.calibration import (
    apply_temperature,
    calibration_errors,
    fit_temperature,
    reliability_table,
)
from chexnet.evaluation.operating_points import RULES, choose_thresholds, decision_curve, rates_at
from chexnet.runs import Run


def auroc_table(
    predictions: pd.DataFrame,
    *,
    groups: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC of every class, and with several classes their macro and micro average.

    Macro is the mean of the classes' AUROCs, micro the AUROC of all (film, class) pairs pooled.
    Both get a bootstrap interval, for their parts share films.

    Args:
        predictions: ``image_id, class_name, y_true, y_score``, one row a film and class.
        groups: the column whose films belong together, ``"patient_id"``; ``None`` gives classes
            DeLong's interval, and averages a bootstrap over ``image_id``.
        n_bootstrap: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        ``class_name, n, n_positive, prevalence, value, low, high, method, reason``. A class with
        one value only has NaN and the reason, and no part in macro; micro keeps its pairs.
    """
    codes, counts = bootstrap_patients(
        predictions[groups or "image_id"].to_numpy(), n_bootstrap=n_bootstrap, seed=seed
    )
    y = predictions["y_true"].to_numpy()
    score = predictions["y_score"].to_numpy()
    names = predictions["class_name"].drop_duplicates().tolist()
    rows, samples = [], []
    for name in names:
        of_class = (predictions["class_name"] == name).to_numpy()
        row = _count(name, y[of_class])
        if not row["reason"]:
            result = auroc(y[of_class], score[of_class])
            row |= {"value": result.value, "low": result.low, "high": result.high}
            row["method"] = result.method
            if groups or len(names) > 1:
                samples.append(
                    bootstrap_auroc(y[of_class], score[of_class], codes[of_class], counts)
                )
            if groups:
                row["low"], row["high"] = percentile_interval(samples[-1])
                row["method"] = "bootstrap by patient"
        rows.append(row)
    if len(names) > 1:
        by = "bootstrap by patient" if groups else "bootstrap by film"
        macro, micro = _count("macro", y), _count("micro", y)
        if samples:
            macro["value"] = float(np.nanmean([row["value"] for row in rows]))
            # A draw that leaves one class without positives leaves that draw out.
            macro["low"], macro["high"] = percentile_interval(np.mean(samples, axis=0))
            macro["method"] = by
        else:
            macro["reason"] = "no class has both values"
        if not micro["reason"]:
            micro["value"] = auroc(y, score).value
            micro["low"], micro["high"] = percentile_interval(
                bootstrap_auroc(y, score, codes, counts)
            )
            micro["method"] = by
        rows += [macro, micro]
    return pd.DataFrame(rows)


def _count(name: str, y: np.ndarray) -> dict:
    reason = "" if len(np.unique(y)) > 1 else f"all {len(y)} labels are {y[0]:g}"
    empty = {"value": np.nan, "low": np.nan, "high": np.nan, "method": "", "reason": reason}
    n, n_positive = len(y), int(y.sum())
    counts = {"n": n, "n_positive": n_positive, "prevalence": n_positive / n}
    return {"class_name": name} | counts | empty


FEWEST = 10  # films of either class below which a subgroup gets no number
_AGE_BANDS = {"under 40": (0, 40), "40 to 59": (40, 60), "60 and over": (60, 200)}


def evaluate(run: Run, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> dict:
    """Evaluates the scores of a run and writes ``metrics.json``.

    Args:
        run: with ``images`` (the training films too) and ``predictions``.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        `Run.metrics`: under ``classes``, by class name, ``val`` and ``test`` (films,
        prevalence, AUROC with DeLong's interval and by patient), ``average_precision``,
        ``operating_points``, ``calibration``, ``decision_curve``, ``subgroups`` and ``baselines``;
        with several classes ``overall`` (macro, micro). A number that is not available is
        ``None`` with a ``reason``. What `evaluate_maps` wrote (``localization``) is kept, unless
        scores or maps have changed since.

    Raises:
        ValueError: there are no predictions for val or for test.
    """
    made_from = {name: run.fingerprint(name) for name in ("predictions.csv", "images.csv")}
    predictions = _with_patient(run.predictions)
    images = run.images
    for split in ("val", "test"):
        if not (predictions["split"] == split).any():
            raise ValueError(
                f"{run.folder / 'predictions.csv'}: no film of split {split!r}; "
                f"it has {sorted(predictions['split'].unique())}"
            )
    classes = {}
    for name, films in predictions.groupby("class_name", sort=False):
        val, test = (films[films["split"] == split] for split in ("val", "test"))
        train = images[images["split"] == "train"]
        classes[name] = _evaluate_class(name, train, val, test, n_bootstrap=n_bootstrap, seed=seed)
    metrics = {
        "bootstrap": {"unit": "patient", "n_bootstrap": n_bootstrap, "seed": seed},
        "classes": classes,
    }
    if len(classes) > 1:
        test = predictions[predictions["split"] == "test"]
        table = auroc_table(test, groups="patient_id", n_bootstrap=n_bootstrap, seed=seed)
        metrics["overall"] = {
            row["class_name"]: _finite(row)
            for row in table.tail(2).drop(columns=["n", "n_positive"]).to_dict("records")
        }
    run.write_metrics(metrics, made_from)
    return run.metrics


def score_block(
    y_true: np.ndarray,
    y_score: np.ndarray,
    groups: np.ndarray,
    *,
    fewest: int = 1,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict:
    """How many films, how many positive, and the AUROC with both its intervals.

    Args:
        y_true: ``(N,)`` labels, 0 or 1.
        y_score: ``(N,)`` scores.
        groups: ``(N,)`` patient ids.
        fewest: films of either class below which there is no AUROC but a reason.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        ``n, n_positive, n_patients, prevalence``, ``auroc`` (DeLong) and ``auroc_by_patient``, each
        ``value, low, high``, or both ``None`` and a ``reason``; a ``note`` where an interval of no
        width must not be taken for certainty.
    """
    y_true = np.asarray(y_true)
    n, n_positive = len(y_true), int(y_true.sum())
    block = {
        "n": n,
        "n_positive": n_positive,
        "n_patients": len(set(groups)),
        "prevalence": n_positive / n if n else None,
    }
    for count, kind in ((n_positive, "positive"), (n - n_positive, "negative")):
        if count < fewest:
            needed = f", fewer than {fewest}" if count else ""
            reason = f"{count or 'no'} {kind} film{'' if count == 1 else 's'}{needed}"
            return block | {"auroc": None, "auroc_by_patient": None, "reason": reason}
    for key, patients in (("auroc", None), ("auroc_by_patient", groups)):
        result = auroc(y_true, y_score, groups=patients, n_bootstrap=n_bootstrap, seed=seed)
        block[key] = _finite({"value": result.value, "low": result.low, "high": result.high})
    if block["auroc"]["value"] in (0, 1):
        block["note"] = "classes apart without exception: the interval has no width"
    return block


def average_precision(
    y_true: np.ndarray,
    y_score: np.ndarray,
    groups: np.ndarray,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, float]:
    """Average precision, scikit-learn's, with an interval by patient.

    Args:
        y_true: ``(N,)`` labels, 0 or 1, at least one 1.
        y_score: ``(N,)`` scores.
        groups: ``(N,)`` patient ids.
        n_bootstrap: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        ``value, low, high``, and ``prevalence``: what a score without information would get.
    """
    y_true, y_score = np.asarray(y_true), np.asarray(y_score)
    order = np.argsort(-y_score, kind="stable")
    y, score = y_true[order], y_score[order]
    ends = np.flatnonzero(np.r_[score[1:] != score[:-1], True])  # films that tie come in together

    def weighted(weight: np.ndarray) -> float:
        found = np.cumsum(weight * y)[ends]
        called = np.cumsum(weight)[ends]
        precision = np.divide(found, called, out=np.zeros(len(ends)), where=called > 0)
        return (np.diff(found, prepend=0) * precision).sum() / found[-1] if found[-1] else np.nan

    codes, counts = bootstrap_patients(groups, n_bootstrap=n_bootstrap, seed=seed)
    low, high = percentile_interval(resample(weighted, codes[order], counts))
    value = float(sklearn_metrics.average_precision_score(y_true, y_score))
    return {"value": value, "low": low, "high": high, "prevalence": float(y_true.mean())}


def _evaluate_class(
    name: str,
    train: pd.DataFrame,
    val: pd.DataFrame,
    test: pd.DataFrame,
    *,
    n_bootstrap: int,
    seed: int,
) -> dict:
    y, score = test["y_true"].to_numpy(), test["y_score"].to_numpy()
    patients = test["patient_id"].to_numpy()
    bootstrap = {"n_bootstrap": n_bootstrap, "seed": seed}
    result = {
        split: score_block(films["y_true"], films["y_score"], films["patient_id"], **bootstrap)
        for split, films in (("val", val), ("test", test))
    }
    if y.any():
        result["average_precision"] = average_precision(y, score, patients, **bootstrap)
    else:
        result["average_precision"] = _missing("no positive films")
    if "reason" in result["val"]:  # without both classes nothing can be chosen
        reason = f"validation has {result['val']['reason']}"
        for part in ("operating_points", "calibration", "decision_curve"):
            result[part] = {"reason": reason}
    else:
        result["operating_points"] = _operating_points(val, y, score)
        temperature = fit_temperature(val["y_true"], val["y_score"])
        after = apply_temperature(score, temperature)
        result["calibration"] = {"temperature": temperature, "fitted_on": "val"}
        for when, probability in (("before", score), ("after", after)):
            errors = calibration_errors(y, probability, groups=patients, **bootstrap)
            bins = reliability_table(y, probability).to_dict("records")
            result["calibration"][when] = errors | {"reliability": bins}
        result["decision_curve"] = decision_curve(y, after, groups=patients, **bootstrap)
    result["subgroups"] = _subgroups(test, **bootstrap)
    result["baselines"] = {
        key: _compare_baseline(baseline, name, train, test, **bootstrap)
        for key, baseline in BASELINES.items()
    }
    return result


def _operating_points(val: pd.DataFrame, y: np.ndarray, score: np.ndarray) -> dict:
    points = {}
    for rule, threshold in choose_thresholds(val["y_true"], val["y_score"]).items():
        points[rule] = {"rule": RULES[rule], "chosen_on": "val", "threshold": threshold}
        if threshold is None:
            points[rule]["reason"] = "no threshold fulfils it on validation"
        else:
            points[rule] |= rates_at(y, score, threshold)
    return points


def _subgroups(test: pd.DataFrame, **bootstrap: int) -> list[dict]:
    """AUROC among films of one view, sex or age band, and for one kind of negatives."""
    positive = test["y_true"] == 1
    parts = []
    for fact in ("view", "sex"):
        if fact in test:
            values = known(test[fact])
            parts += [(fact, value, values == value) for value in sorted(values.unique())]
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
        {"by": by, "group": group}
        | score_block(
            test.loc[inside, "y_true"],
            test.loc[inside, "y_score"],
            test.loc[inside, "patient_id"],
            fewest=FEWEST,
            **bootstrap,
        )
        for by, group, inside in tqdm(parts, desc="groups of films", unit=" groups", delay=2)
    ]


def _compare_baseline(
    baseline: Baseline,
    name: str,
    train: pd.DataFrame,
    test: pd.DataFrame,
    **bootstrap: int,
) -> dict:
    """AUROC of a baseline on test films, and the model's difference from it."""
    lacking = [column for column in [*baseline.columns, name] if column not in train]
    if lacking:
        return _missing(f"images.csv has no column {lacking[0]}")
    if train[name].nunique() < 2 or test["y_true"].nunique() < 2:
        return _missing("training or test films are all of one class")
    y, patients = test["y_true"].to_numpy(), test["patient_id"].to_numpy()
    score = baseline.scores(train, test, name)
    if len(np.unique(score)) < 2:
        return _missing("the same for every film")
    block = score_block(y, score, patients, **bootstrap)
    gap = compare_auroc(y, test["y_score"], score, groups=patients, **bootstrap)
    block["model_minus_baseline"] = _finite(
        {"value": gap.difference, "low": gap.low, "high": gap.high, "p": gap.p}
    )
    return block


def _with_patient(predictions: pd.DataFrame) -> pd.DataFrame:
    """A film whose patient is not known counts as a patient of its own."""
    if "patient_id" not in predictions:
        return predictions.assign(patient_id=predictions["image_id"])
    return predictions.assign(patient_id=predictions["patient_id"].fillna(predictions["image_id"]))


def _missing(reason: str) -> dict:
    return {"value": None, "low": None, "high": None, "auroc": None, "reason": reason}


def _finite(row: dict) -> dict:
    """JSON has no NaN: ``None`` in its place."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
        if key != "class_name"
    }
