"""Evaluates a cross-validation: each film is scored by the network that never saw its patient.

Each fold has a network, a threshold and a scale of scores of its own. So the AUROC is the mean of
the folds' AUROCs, which compares only films of one fold. The AUROC of all films together, which
mixes the scores of different networks, is reported too.
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from chexnet.auroc import N_BOOTSTRAP, auroc, compare_auroc, mean_interval
from chexnet.evaluation import BASELINES, chosen_threshold
from chexnet.evaluation.maps import localize_films, summarize_localization
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
        _, test = run.scored_films(name)
        threshold, _ = chosen_threshold(run, class_name=name)
        test = test.assign(fold=fold, predicted=test["y_score"] >= threshold)
        train = run.images.query("split == 'train'")
        for key, baseline in BASELINES.items():
            if set(baseline.columns) <= set(train):
                test[f"baseline_{key}"] = baseline.scores(train, test, name)
        parts.append(test)
    films = pd.concat(parts, ignore_index=True).drop(columns=["split", "class_name"])
    duplicates = films.loc[films["image_id"].duplicated(), "image_id"]
    if len(duplicates):
        raise ValueError(f"film {duplicates.iloc[0]} is in the test split of two folds")
    return films


def out_of_fold_maps(runs: Sequence[Run], *, class_name: str | None = None) -> pd.DataFrame:
    """Every positive film with boxes, as `chexnet.evaluation.maps.localize_films` measures it."""
    rows = [
        localize_films(run, class_name=class_name).rows.assign(fold=fold)
        for fold, run in enumerate(runs, 1)
    ]
    return pd.concat(rows, ignore_index=True)


def by_view(films: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The films of each view that is labelled both ways in every fold."""
    for view, part in films.groupby("view") if "view" in films else ():
        if (part.groupby("fold")["y_true"].nunique() == 2).all():
            yield view, part


def by_fold(films: pd.DataFrame) -> dict:
    """What makes an AUROC the mean of the folds, with bootstrap samples of patients."""
    return {"groups": films["patient_id"], "strata": films["fold"]}


def cross_validation_report(
    films: pd.DataFrame, maps: pd.DataFrame, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict:
    """AUROC and localization over all films, with intervals by patient, compared with baselines.

    Args:
        films: from `out_of_fold_films`.
        maps: from `out_of_fold_maps`.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        ``auroc`` (mean of the folds), ``auroc_of_each_fold``, ``auroc_all_together`` (DeLong),
        ``auroc_within`` (mean of the folds, by view), ``sensitivity``, ``specificity``,
        ``baselines`` (the AUROC of each, and the model's difference from it), each
        ``value, low, high``; and ``maps``, as `chexnet.evaluation.maps.summarize_localization`.
    """
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    y, score = films["y_true"], films["y_score"]
    options = by_fold(films) | settings
    report = {
        "n": len(films),
        "n_positive": int(y.sum()),
        "auroc": auroc(y, score, **options).estimate(),
        "auroc_within": {
            view: auroc(part["y_true"], part["y_score"], **by_fold(part), **settings).estimate()
            for view, part in by_view(films)
        },
        "auroc_of_each_fold": [
            auroc(fold["y_true"], fold["y_score"]).value for _, fold in films.groupby("fold")
        ],
        "auroc_all_together": auroc(y, score).estimate(),
        "maps": summarize_localization(maps, **settings),
        "baselines": {},
    }
    for rate, label in (("sensitivity", 1), ("specificity", 0)):
        its_films = films[films["y_true"] == label]
        correct = its_films["predicted"] == bool(label)
        report[rate] = mean_interval(correct, its_films["patient_id"], **settings)
    for key in BASELINES:
        column = f"baseline_{key}"
        if column in films:
            report["baselines"][key] = {
                "auroc": auroc(y, films[column], **options).estimate(),
                "model_minus_baseline": compare_auroc(
                    y, score, films[column], **options
                ).estimate(),
            }
    return report


def compare_recipes(
    first: tuple[pd.DataFrame, pd.DataFrame],
    second: tuple[pd.DataFrame, pd.DataFrame],
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict:
    """Paired comparison of two cross-validations of the same films.

    Args:
        first: ``(films, maps)`` of one.
        second: ``(films, maps)`` of the other, the same folds.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        the first minus the second, each ``value, low, high``: ``auroc`` (mean of the folds,
        bootstrap by patient, with ``p``), ``auroc_all_together`` (DeLong's paired test, with
        ``p``), ``auroc_within`` (as ``auroc``, by view), ``hit_rate`` and ``mean_iou``.

    Raises:
        ValueError: the two have other films or other folds.
    """
    films, maps, other_films, other_maps = (
        table.sort_values(["image_id", "fold"], ignore_index=True) for table in (*first, *second)
    )
    for one, other in ((films, other_films), (maps, other_maps)):
        for column in ("image_id", "fold", "y_true"):
            if one[column].tolist() != other[column].tolist():
                raise ValueError(f"the two cross-validations differ in {column}")
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    films["other_score"] = other_films["y_score"]

    def gap(part: pd.DataFrame, **options: object) -> dict:
        scores = part["y_true"], part["y_score"], part["other_score"]
        return compare_auroc(*scores, **options).estimate()

    return {
        "auroc": gap(films, **by_fold(films), **settings),
        "auroc_all_together": gap(films),
        "auroc_within": {
            view: gap(part, **by_fold(part), **settings) for view, part in by_view(films)
        },
        **{
            name: mean_interval(
                maps[column].astype(float) - other_maps[column].astype(float),
                maps["patient_id"],
                **settings,
            )
            for name, column in (("hit_rate", "hit"), ("mean_iou", "iou"))
        },
    }
