"""Evaluates the maps of a run: localization of the radiologists' boxes, compared with baselines.

Thresholds are chosen on validation films, baselines are fitted on training films. Test films are
used for evaluation only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from chexnet.auroc import N_BOOTSTRAP, mean_interval, no_estimate
from chexnet.evaluation.localization import (
    challenge_scores,
    choose_challenge_threshold,
    choose_map_threshold,
    localization_scores,
)
from chexnet.evaluation.operating_points import choose_thresholds
from chexnet.evaluation.prior import (
    BoxPrior,
    choose_guidance,
    fit_box_prior,
    fixed_mask_iou,
    guided_maps,
)
from chexnet.files import refuse
from chexnet.labels import points_in_boxes
from chexnet.runs import Run

IOU_LEVELS = np.arange(1, 8) / 10  # Wang et al. 2017, tables 4 and 5: T(IoU), T(IoBB)
_FILES = ("predictions.csv", "maps.npz", "images.csv", "boxes.csv")
# Maps, ids, boxes of positive films, sizes: what the functions of `localization` take.
_Films = tuple[np.ndarray, pd.Series, pd.DataFrame, pd.DataFrame]
_THRESHOLDS = ("min-max", "logit", "score", "challenge", "prior_weight", "guided")


@dataclass(frozen=True)
class LocalizedFilms:
    """The test films of a run, the map of each compared with its boxes.

    ``rows`` has one row a positive film with boxes. ``iou_logit`` is of the raw map, ``guided_hit``
    and ``guided_iou`` are of the map with the spatial prior. These columns and the baselines are
    missing if no validation or training film has boxes. ``challenge`` has the films that the
    challenge's mAP counts. ``thresholds`` are None where there was nothing to choose on.
    """

    rows: pd.DataFrame
    challenge: pd.DataFrame
    thresholds: dict[str, float | None]
    prior: BoxPrior | None
    map_shape: tuple[int, ...]


def evaluate_maps(run: Run, *, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> dict:
    """Evaluates the maps of a run on test films and adds ``localization`` to ``metrics.json``.

    Args:
        run: with ``maps``, ``predictions``, ``images`` and ``boxes``.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        by class name, what `summarize_localization` returns, of all positive test films with boxes,
        and as ``true_positives`` of those predicted positive at the threshold of the Youden index;
        ``challenge_map`` of these and the negative test films; ``thresholds``, and the ``prior``.
        What is not available is ``None`` with a ``reason``; a class without boxes on its positive
        test films has a ``reason`` only.

    Raises:
        ValueError: a scored film has no map, or one with NaN or infinite values.

    Example:
        >>> from chexnet.evaluation import evaluate_maps
        >>> from chexnet.runs import Run
        >>> found = evaluate_maps(Run("output/demo"), n_bootstrap=20)
        >>> 0 <= found["Pneumonia"]["hit_rate"]["value"] <= 1
        True
    """
    made_from = {name: run.fingerprint(name) for name in _FILES}
    bootstrap = {"n_bootstrap": n_bootstrap, "seed": seed}
    report = {
        name: _evaluate_class(localize_films(run, class_name=name), **bootstrap)
        for name in run.class_names
    }
    run.write_metrics({"localization": report}, made_from)
    return run.metrics["localization"]


def cam_threshold(run: Run, class_name: str | None = None) -> float | None:
    """The threshold of the raw CAM, in logits, with the largest mean IoU on validation.

    Args:
        run: its `evaluate_maps` chose the threshold.
        class_name: the class; ``None`` is the run's first.

    Returns:
        the threshold; ``None`` if the present maps are not evaluated or have no boxes to compare
        with.

    Raises:
        ValueError: the run has no such class.

    Example:
        >>> from chexnet.evaluation import cam_threshold
        >>> from chexnet.runs import Run
        >>> cam_threshold(Run("output/demo")) is None
        False
    """
    found = run.metrics.get("localization", {}).get(run.chosen_class(class_name), {})
    return found.get("thresholds", {}).get("logit")


def _evaluate_class(films: LocalizedFilms, **bootstrap: int) -> dict:
    if films.rows.empty:
        return {"reason": "no boxes"}
    thresholds, prior = films.thresholds, films.prior
    report: dict[str, Any] = {"map_shape": list(films.map_shape)}
    report |= summarize_localization(films.rows, **bootstrap)
    if thresholds["score"] is not None:
        found = films.rows[films.rows["y_score"] >= thresholds["score"]]
        report["true_positives"] = summarize_localization(found, **bootstrap)
    if thresholds["challenge"] is not None:
        found = films.challenge
        report["challenge_map"] = mean_interval(found["score"], found["patient_id"], **bootstrap)
    report["thresholds"] = {"chosen_on": "val", **thresholds}
    report["prior"] = prior and {"point": list(prior.point), "n_films": prior.n_films}
    return report


def localize_films(run: Run, *, class_name: str | None = None) -> LocalizedFilms:
    """Compares the maps of a run's test films with their boxes, and with baselines."""
    name = run.chosen_class(class_name)
    index, images, all_boxes = run.class_names.index(name), run.images, run.boxes_of(name)
    thresholds: dict[str, float | None] = dict.fromkeys(_THRESHOLDS)
    val, test = run.scored_films(name)
    if len(set(val["y_true"])) > 1:
        thresholds["score"] = choose_thresholds(val["y_true"], val["y_score"])["youden"]
    # Where the finding is on a positive film without boxes is not known.
    val, test = (
        films[(films["y_true"] == 0) | films["image_id"].isin(all_boxes["image_id"])]
        for films in (val, test)
    )

    def with_maps(films: pd.DataFrame, split: str) -> _Films:
        ids = films["image_id"]
        maps = run.maps_of(ids, f"scored {split}")[:, index]
        broken = ids[~np.isfinite(maps).all(axis=(1, 2))]
        refuse(run.folder / "maps.npz", broken, "films whose map has NaN or infinite values")
        positive = ids[films["y_true"] == 1]
        return maps, ids, all_boxes[all_boxes["image_id"].isin(positive)], images

    val_films, test_films = with_maps(val, "validation"), with_maps(test, "test")
    has_val_boxes = len(val_films[2]) > 0
    if has_val_boxes:
        thresholds["min-max"] = choose_map_threshold(*val_films)[0]
        thresholds["logit"] = choose_map_threshold(*val_films, normalize=False)[0]

    rows = localization_scores(*test_films, threshold=thresholds["min-max"])
    rows = rows.merge(test[["image_id", "patient_id", "y_true", "y_score"]], on="image_id")
    if has_val_boxes:
        by_logit = localization_scores(*test_films, threshold=thresholds["logit"], normalize=False)
        rows["iou_logit"] = by_logit["iou"]
    train = images[images["split"] == "train"]
    if name in train:
        train = train[train[name] == 1]
    prior = None
    if all_boxes["image_id"].isin(train["image_id"]).any():
        prior = fit_box_prior(all_boxes, train)
        point, boxes = np.tile(prior.point, (len(rows), 1)), test_films[2]
        rows["fixed_point"] = points_in_boxes(point, rows["image_id"], boxes, images)
        rows["fixed_mask"] = fixed_mask_iou(prior, boxes, images, rows["image_id"])
        if has_val_boxes:
            weight, threshold = choose_guidance(*val_films, prior)
            thresholds |= {"prior_weight": weight, "guided": threshold}
            maps, *rest = test_films
            guided = guided_maps(maps, prior, weight)
            scores = localization_scores(guided, *rest, threshold=threshold, normalize=False)
            rows["guided_hit"], rows["guided_iou"] = scores["hit"], scores["iou"]
    challenge = pd.DataFrame({"score": [], "patient_id": []})
    if thresholds["score"] is not None and has_val_boxes:
        predicted = [films["y_score"] >= thresholds["score"] for films in (val, test)]
        threshold = choose_challenge_threshold(*val_films, predicted[0])
        thresholds["challenge"] = threshold
        scores = challenge_scores(*test_films, predicted[1], [threshold])[:, 0]
        challenge = pd.DataFrame({"score": scores, "patient_id": test["patient_id"]}).dropna()
    return LocalizedFilms(rows, challenge, thresholds, prior, test_films[0].shape[1:])


def summarize_localization(rows: pd.DataFrame, **bootstrap: int) -> dict:
    """The mean of each measure over films, with its interval by patient.

    ``rows`` are those of `localize_films`, of one run or of several with different test films.
    ``guided`` repeats the measures for the map with the spatial prior.
    """

    def mean(column: str, *, above: float | None = None, minus: str | None = None) -> dict:
        if column not in rows or (minus and minus not in rows):
            return no_estimate("no films with boxes in validation or training")
        values = rows[column].to_numpy()
        if above is not None:
            values = values > above
        if minus is not None:
            values = values.astype(np.float64) - rows[minus].to_numpy(np.float64)
        return mean_interval(values, rows["patient_id"], **bootstrap)

    return {
        "hit_rate": mean("hit"),
        "mean_iou": mean("iou"),
        "mean_iou_logit": mean("iou_logit"),
        "iobb": mean("iobb"),
        "energy_in_boxes": mean("energy_in_boxes"),
        "iou_accuracy": {f"{level:.1f}": mean("iou", above=level) for level in IOU_LEVELS},
        "iobb_accuracy": {f"{level:.1f}": mean("iobb", above=level) for level in IOU_LEVELS},
        "baselines": {
            "random_point": mean("box_share"),
            "fixed_point": mean("fixed_point"),
            "fixed_mask": mean("fixed_mask"),
        },
        "hit_rate_minus_fixed_point": mean("hit", minus="fixed_point"),
        "mean_iou_minus_fixed_mask": mean("iou", minus="fixed_mask"),
        "guided": {
            "hit_rate": mean("guided_hit"),
            "mean_iou": mean("guided_iou"),
            "hit_rate_minus_fixed_point": mean("guided_hit", minus="fixed_point"),
            "mean_iou_minus_fixed_mask": mean("guided_iou", minus="fixed_mask"),
        },
    }
