"""The maps of a run compared with the radiologists' boxes and with baselines without the image.

Thresholds are chosen on validation films, baselines are fitted on training films.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexnet.auroc import N_BOOTSTRAP, mean_interval
from chexnet.evaluation.localization import (
    HEATS,
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
from chexnet.labels import points_in_boxes
from chexnet.runs import Run

IOU_LEVELS = np.arange(1, 8) / 10  # Wang et al. 2017, tables 4 and 5: T(IoU), T(IoBB)
_CHOSEN = (*HEATS, "score", "challenge", "prior_weight", "guided")
_NOTHING = {"value": None, "low": None, "high": None, "n": 0}


@dataclass(frozen=True)
class LocalizedFilms:
    """The test films of a run, each map held against its boxes.

    Attributes:
        rows: one a positive film with boxes: ``image_id, patient_id, y_true, y_score``, the columns
            of `chexnet.evaluation.localization_scores`, and, where validation and training films
            have boxes, ``iou_logit``, the baselines on this film, ``fixed_point, fixed_mask``, and
            ``guided_hit, guided_iou`` of the map guided by the prior (`chexnet.evaluation.prior`).
        challenge: ``score, patient_id`` of the test films that the challenge's mAP counts.
        thresholds: chosen on validation: of the map (``min-max``, ``logit``), of the ``score``, of
            boxes for the ``challenge``, of the ``guided`` map and the ``prior_weight`` in it; None
            where there was nothing to choose on.
        prior: the baselines, fitted on training films; None without boxes there.
        map_shape: rows, columns of a map.
    """

    rows: pd.DataFrame
    challenge: pd.DataFrame
    thresholds: dict[str, float | None]
    prior: BoxPrior | None
    map_shape: tuple[int, int]


def evaluate_maps(
    run: Run, *, class_name: str | None = None, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0
) -> dict:
    """Judges the maps of a run on test and adds ``localization`` to its ``metrics.json``.

    Thresholds are chosen on validation, baselines are fitted on the boxes of the training films,
    and every mean has a 95 % interval by patient. What cannot be had is ``None`` with a ``reason``.

    Args:
        run: with ``maps``, ``predictions``, ``images`` and ``boxes``.
        class_name: whose maps, on films labelled with it; ``None`` is the run's first class.
        n_bootstrap: bootstrap samples of patients.
        seed: of the bootstrap.

    Returns:
        of all positive test films with boxes: ``hit_rate, mean_iou`` (min-max), ``mean_iou_logit,
        iobb, energy_in_boxes``, ``iou_accuracy`` and ``iobb_accuracy`` by level, each
        ``value, low, high, n``; ``baselines`` (``random_point, fixed_point, fixed_mask``), and the
        paired ``hit_rate_minus_fixed_point`` and ``mean_iou_minus_fixed_mask``; these also of the
        map ``guided`` by the boxes of the training films (`chexnet.evaluation.prior`). The same of
        ``true_positives``, those predicted positive at the threshold of the Youden index on
        validation. ``challenge_map`` on all test films. ``thresholds``, and the ``prior``.

    Raises:
        ValueError: the run has no such class, or a scored film has no map.
    """
    files = ("predictions.csv", "maps.npz", "images.csv", "boxes.csv")
    made_from = {name: run.fingerprint(name) for name in files}
    judged = localize_films(run, class_name=class_name)
    rows, thresholds, prior = judged.rows, judged.thresholds, judged.prior
    bootstrap = {"n_bootstrap": n_bootstrap, "seed": seed}
    report = {"class_name": class_name or run.class_names[0], "map_shape": list(judged.map_shape)}
    report |= summarize_localization(rows, **bootstrap)
    if thresholds["score"] is not None:
        found = rows[rows["y_score"] >= thresholds["score"]]
        report["true_positives"] = summarize_localization(found, **bootstrap)
    if thresholds["challenge"] is not None:
        report["challenge_map"] = mean_interval(
            judged.challenge["score"].to_numpy(),
            judged.challenge["patient_id"].to_numpy(),
            **bootstrap,
        )
    report["thresholds"] = {"chosen_on": "val", **thresholds}
    report["prior"] = prior and {"point": list(prior.point), "n_films": prior.n_films}
    run.write_metrics({"localization": report}, made_from)
    return run.metrics["localization"]


def localize_films(run: Run, *, class_name: str | None = None) -> LocalizedFilms:
    """Holds the maps of a run's test films with boxes against them, and the baselines too.

    Args:
        run: with ``maps``, ``predictions``, ``images`` and ``boxes``.
        class_name: whose maps, on films labelled with it; ``None`` is the run's first class.

    Raises:
        ValueError: the run has no such class, or a scored film has no map.
    """
    class_name = run.class_names[0] if class_name is None else class_name
    images, boxes = run.images, run.boxes
    (val, val_maps), (test, test_maps) = (
        _scored_films(run, class_name, split) for split in ("val", "test")
    )
    train = images[images["split"] == "train"]
    if class_name in train:
        train = train[train[class_name] == 1]
    val_boxes, test_boxes = (
        boxes[boxes["image_id"].isin(films.loc[films["y_true"] == 1, "image_id"])]
        for films in (val, test)
    )
    thresholds: dict[str, float | None] = dict.fromkeys(_CHOSEN)
    if len(val_boxes):
        for heat in HEATS:
            thresholds[heat] = choose_map_threshold(
                val_maps, val["image_id"], val_boxes, images, heat=heat
            )
    if len(set(val["y_true"])) > 1:
        thresholds["score"] = choose_thresholds(val["y_true"], val["y_score"])["youden"]

    judged = (test_maps, test["image_id"], test_boxes, images)
    rows = localization_scores(*judged, threshold=thresholds["min-max"]).merge(test, on="image_id")
    if thresholds["logit"] is not None:
        by_logit = localization_scores(*judged, threshold=thresholds["logit"], heat="logit")
        rows["iou_logit"] = by_logit["iou"]
    prior = None
    if boxes["image_id"].isin(train["image_id"]).any():
        prior = fit_box_prior(boxes, train)
        everywhere = np.tile(prior.point, (len(rows), 1))
        rows["fixed_point"] = points_in_boxes(everywhere, rows["image_id"], test_boxes, images)
        rows["fixed_mask"] = fixed_mask_iou(prior, test_boxes, images, rows["image_id"])
        if len(val_boxes):
            weight, cut = choose_guidance(val_maps, val["image_id"], val_boxes, images, prior)
            thresholds |= {"prior_weight": weight, "guided": cut}
            guided = localization_scores(
                guided_maps(test_maps, prior, weight), *judged[1:], threshold=cut, heat="logit"
            )
            rows["guided_hit"], rows["guided_iou"] = guided["hit"], guided["iou"]
    challenge = pd.DataFrame({"score": [], "patient_id": []})
    if thresholds["score"] is not None and len(val_boxes):
        positive = [films["y_score"] >= thresholds["score"] for films in (val, test)]
        thresholds["challenge"] = choose_challenge_threshold(
            val_maps, val["image_id"], positive[0], val_boxes, images
        )
        scores = challenge_scores(
            test_maps, test["image_id"], positive[1], test_boxes, images, thresholds["challenge"]
        )
        challenge = pd.DataFrame({"score": scores, "patient_id": test["patient_id"]})
        challenge = challenge[np.isfinite(scores)]
    return LocalizedFilms(rows, challenge, thresholds, prior, test_maps.shape[1:])


def summarize_localization(rows: pd.DataFrame, **bootstrap: int) -> dict:
    """The mean of each measure over films, with its interval by patient, also of the baselines.

    Args:
        rows: of `localize_films`, of one run or of several that judged different films.
        **bootstrap: ``n_bootstrap`` and ``seed`` of `chexnet.auroc.mean_interval`.

    Returns:
        as `localization_report`, for all of ``rows``.
    """
    patients = rows["patient_id"].to_numpy()

    def mean(column: str, *, above: float | None = None, less: str | None = None) -> dict:
        if column not in rows or (less and less not in rows):
            return _NOTHING | {"reason": "no films with boxes in validation or training"}
        values = rows[column].to_numpy()
        if above is not None:
            values = values > above
        if less is not None:
            values = values.astype(np.float64) - rows[less].to_numpy(np.float64)
        return mean_interval(values, patients, **bootstrap)

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
        "hit_rate_minus_fixed_point": mean("hit", less="fixed_point"),
        "mean_iou_minus_fixed_mask": mean("iou", less="fixed_mask"),
        "guided": {
            "hit_rate": mean("guided_hit"),
            "mean_iou": mean("guided_iou"),
            "hit_rate_minus_fixed_point": mean("guided_hit", less="fixed_point"),
            "mean_iou_minus_fixed_mask": mean("guided_iou", less="fixed_mask"),
        },
    }


def _scored_films(run: Run, class_name: str, split: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The films of a split with labels, scores and patients, and their maps ``(N, h, w)``."""
    if class_name not in run.class_names:
        raise ValueError(f"{run.folder}: no class {class_name!r}; it has {run.class_names}")
    films = run.predictions
    films = films[(films["class_name"] == class_name) & (films["split"] == split)]
    films = films.reset_index(drop=True)
    if "patient_id" not in films:
        films["patient_id"] = films["image_id"]
    films["patient_id"] = films["patient_id"].fillna(films["image_id"])
    maps = run.maps_of(films["image_id"], f"scored {split}")[:, run.class_names.index(class_name)]
    return films[["image_id", "patient_id", "y_true", "y_score"]], maps
