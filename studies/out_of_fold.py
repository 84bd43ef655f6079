"""The evidence of a cross-validation: every film judged by the network that never saw its patient.

Each fold has a network, a threshold and a scale of scores of its own. The AUROC is therefore the
mean of the folds' AUROCs, in which only films of one fold are compared; the AUROC of all films
together, for which the scores of different networks are thrown together, stands beside it.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from chexnet.auroc import (
    N_BOOTSTRAP,
    auroc,
    bootstrap_auroc,
    bootstrap_patients,
    compare_auroc,
    mean_interval,
    percentile_interval,
)
from chexnet.evaluation import BASELINES, choose_thresholds, localize_films, summarize_localization
from chexnet.runs import Run


def out_of_fold_films(runs: Sequence[Run], *, class_name: str | None = None) -> pd.DataFrame:
    """Every film of a cross-validation, once.

    Args:
        runs: one a fold, from `studies.cross_validation.cross_validate`, scored.
        class_name: ``None`` is the runs' first class.

    Returns:
        ``image_id, patient_id, fold, y_true, y_score``, ``predicted`` (positive at the
        threshold of the Youden index on the fold's validation films), the films' facts, and, where
        these are known, the scores of `chexnet.evaluation.BASELINES`, fitted on the fold's training
        films: ``baseline_view``, ``baseline_view_sex_age``.

    Raises:
        ValueError: a film is in the test split of two folds.
    """
    parts = []
    for fold, run in enumerate(runs, 1):
        name = run.chosen_class(class_name)
        scored = run.predictions.query("class_name == @name")
        val, test = (scored[scored["split"] == split] for split in ("val", "test"))
        threshold = choose_thresholds(val["y_true"], val["y_score"])["youden"]
        test = test.assign(fold=fold, predicted=test["y_score"] >= threshold)
        train = run.images.query("split == 'train'")
        for key, baseline in BASELINES.items():
            if set(baseline.columns) <= set(train):
                test[f"baseline_{key}"] = baseline.scores(train, test, name)
        parts.append(test)
    films = pd.concat(parts, ignore_index=True).drop(columns=["split", "class_name"])
    films["patient_id"] = films["patient_id"].fillna(films["image_id"])
    twice = films.loc[films["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise ValueError(f"film {twice.iloc[0]} is in the test split of two folds")
    return films


def out_of_fold_maps(runs: Sequence[Run], *, class_name: str | None = None) -> pd.DataFrame:
    """Every positive film with boxes, as `chexnet.evaluation.localize_films` measures it."""
    rows = [
        localize_films(run, class_name=class_name).rows.assign(fold=fold)
        for fold, run in enumerate(runs, 1)
    ]
    return pd.concat(rows, ignore_index=True)


def cross_validation_report(
    films: pd.DataFrame, maps: pd.DataFrame, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict:
    """AUROC and localisation over all films, with intervals by patient, compared with baselines.

    Args:
        films: from `out_of_fold_films`.
        maps: from `out_of_fold_maps`.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        ``auroc`` (mean of the folds), ``auroc_of_each_fold``, ``auroc_all_together`` (DeLong),
        ``sensitivity``, ``specificity``, ``baselines`` (the AUROC of each, and the model's
        difference from it), each ``value, low, high``; and ``maps``, as
        `chexnet.evaluation.summarize_localization`.
    """
    bootstrap = {"n_bootstrap": n_bootstrap, "seed": seed}
    pooled = auroc(films["y_true"], films["y_score"])
    report = {
        "n": len(films),
        "n_positive": int(films["y_true"].sum()),
        "auroc": mean_auroc(films, "y_score", **bootstrap),
        "auroc_of_each_fold": [
            auroc(fold["y_true"], fold["y_score"]).value for _, fold in films.groupby("fold")
        ],
        "auroc_all_together": {"value": pooled.value, "low": pooled.low, "high": pooled.high},
        "maps": summarize_localization(maps, **bootstrap),
        "baselines": {},
    }
    for rate, label in (("sensitivity", 1), ("specificity", 0)):
        judged = films[films["y_true"] == label]
        right = (judged["predicted"] == bool(label)).to_numpy()
        report[rate] = mean_interval(right, judged["patient_id"].to_numpy(), **bootstrap)
    for key in BASELINES:
        column = f"baseline_{key}"
        if column in films:
            report["baselines"][key] = {
                "auroc": mean_auroc(films, column, **bootstrap),
                "model_minus_baseline": mean_auroc(
                    films, "y_score", less=films[column], **bootstrap
                ),
            }
    return report


def compare_recipes(
    better: tuple[pd.DataFrame, pd.DataFrame],
    plain: tuple[pd.DataFrame, pd.DataFrame],
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict:
    """Two cross-validations of the same films compared, film by film.

    Args:
        better: ``(films, maps)`` of the one.
        plain: ``(films, maps)`` of the other, the same folds.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        the first less the second, each ``value, low, high``: ``auroc`` (mean of the folds,
        bootstrap by patient, with ``p``), ``auroc_all_together`` (DeLong's paired test, with
        ``p``), ``hit_rate`` and ``mean_iou``.

    Raises:
        ValueError: the two have other films or other folds.
    """
    (films, maps), (other_films, other_maps) = better, plain
    films, maps = films.sort_values("image_id"), maps.sort_values("image_id")
    other_films = other_films.sort_values("image_id")
    other_maps = other_maps.sort_values("image_id")
    for one, other in ((films, other_films), (maps, other_maps)):
        for column in ("image_id", "fold", "y_true"):
            if one[column].tolist() != other[column].tolist():
                raise ValueError(f"the two cross-validations differ in {column}")
    bootstrap = {"n_bootstrap": n_bootstrap, "seed": seed}
    delong = compare_auroc(films["y_true"], films["y_score"], other_films["y_score"])
    other_score = pd.Series(other_films["y_score"].to_numpy(), films.index)
    patients = maps["patient_id"].to_numpy()
    return {
        "auroc": mean_auroc(films, "y_score", less=other_score, **bootstrap),
        "auroc_all_together": {
            "value": delong.difference,
            "low": delong.low,
            "high": delong.high,
            "p": delong.p,
        },
        "hit_rate": mean_interval(
            maps["hit"].to_numpy(float) - other_maps["hit"].to_numpy(float), patients, **bootstrap
        ),
        "mean_iou": mean_interval(
            maps["iou"].to_numpy() - other_maps["iou"].to_numpy(), patients, **bootstrap
        ),
    }


def mean_auroc(
    films: pd.DataFrame,
    score: str,
    *,
    less: pd.Series | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, float]:
    """The mean of the folds' AUROCs, or of their differences, with an interval by patient.

    Args:
        films: with ``fold, patient_id, y_true`` and the score; a patient is in one fold only.
        score: the column.
        less: another score of the same films, whose AUROC is taken off.
        n_bootstrap: bootstrap samples of patients; without those where a fold has one class.
        seed: of the bootstrap.

    Returns:
        ``value, low, high``, and, of a difference, ``p``: two-sided, from the difference over the
        standard deviation of its bootstrap samples.
    """
    codes, counts = bootstrap_patients(
        films["patient_id"].to_numpy(), n_bootstrap=n_bootstrap, seed=seed
    )
    values, samples = [], []
    for fold in films["fold"].unique():
        inside = (films["fold"] == fold).to_numpy()
        y = films.loc[inside, "y_true"].to_numpy()
        scores = [films.loc[inside, score].to_numpy()]
        if less is not None:
            scores.append(less[inside].to_numpy())
        value = [auroc(y, one, interval="delong").value for one in scores]
        sample = [bootstrap_auroc(y, one, codes[inside], counts) for one in scores]
        values.append(value[0] - sum(value[1:]))
        samples.append(sample[0] - sum(sample[1:]))
    mean, spread = float(np.mean(values)), np.mean(samples, axis=0)
    low, high = percentile_interval(spread)
    found = {"value": mean, "low": low, "high": high}
    if less is not None:
        error = float(np.nanstd(spread, ddof=1))
        found["p"] = float(2 * stats.norm.sf(abs(mean) / error)) if error else float(not mean)
    return found
