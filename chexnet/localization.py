"""How well the maps of a run find the radiologists' boxes.

Definitions follow CheXlocalize (Saporta et al. 2022, Nature Machine Intelligence 4, 867-878:
pointing game, mean IoU at a threshold chosen on validation) and ChestX-ray8 (Wang et al. 2017,
section 4.3: IoBB, share of films above an IoU), with all boxes of a film taken together.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from chexnet.box_prior import fit_box_prior, fixed_mask_iou
from chexnet.boxes import box_masks
from chexnet.detection import challenge_scores, choose_challenge_threshold
from chexnet.intervals import DRAWS, mean_interval
from chexnet.operating_points import choose_thresholds
from chexnet.overlap import (
    CANVAS,
    LEVELS,
    brightest_points,
    min_max,
    overlaps,
    points_in_boxes,
    upsample,
)
from chexnet.runs import Run

HEATS = ("min-max", "logit")
IOU_LEVELS = np.arange(1, 8) / 10  # Wang et al. 2017, tables 4 and 5: T(IoU), T(IoBB)
_NOTHING = {"value": None, "low": None, "high": None, "n": 0}
_FILMS_AT_ONCE = 256  # keeps upsampled maps and masks below 150 MB


def localization_scores(
    maps: np.ndarray,
    image_ids: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    *,
    threshold: float | None = None,
    heat: str = "min-max",
    canvas: int = CANVAS,
) -> pd.DataFrame:
    """Holds the map of each film that has boxes against them.

    - ``hit`` (pointing game): the brightest point of the upsampled map lies in a box. A constant
      map points nowhere and is a miss.
    - ``energy_in_boxes``: share of the map's positive part that lies in boxes; 0 if it has none.
    - ``box_share``: share of the film that lies in boxes: what a random point would hit, and a
      constant positive map's energy.
    - ``iou``, ``iobb``: of the map cut at the threshold with the boxes together; see
      `overlap.overlaps`.

    Args:
        maps: ``(N, h, w)`` raw maps of one class, which cover the whole film.
        image_ids: ``(N,)``, their films.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        films: ``image_id, rows, columns`` of the films with boxes.
        threshold: where to cut, chosen on other films (`choose_map_threshold`); without it there
            are no ``iou`` and ``iobb``.
        heat: ``"min-max"`` cuts the upsampled map stretched to [0, 1] film by film, as CheXlocalize
            does; ``"logit"`` cuts the map as it is, so a map may mark nothing, or everything.
        canvas: side in pixels of the canvas on which areas are measured.

    Returns:
        one row a film with boxes, in the order of ``image_ids``: ``image_id, hit`` (bool),
        ``energy_in_boxes, box_share``, and ``iou, iobb``, floats in [0, 1].

    Raises:
        ValueError: maps are not ``(N, h, w)`` of finite numbers, an id stands twice, a film with
            boxes has no size, or ``heat`` is neither of the two.
    """
    maps, image_ids = _with_boxes(maps, image_ids, boxes)
    thresholds = np.array([] if threshold is None else [threshold])
    parts = []
    for ids, raw, masks in _on_canvas(maps, image_ids, boxes, films, canvas):
        evidence = raw.clip(0)
        total = evidence.sum(axis=(1, 2), dtype=np.float64)
        shared = (evidence * masks).sum(axis=(1, 2), dtype=np.float64)
        part = {
            "image_id": ids,
            "energy_in_boxes": np.divide(shared, total, out=np.zeros(len(ids)), where=total > 0),
            "box_share": masks.mean(axis=(1, 2), dtype=np.float64),
        }
        if threshold is not None:
            iou, iobb = overlaps(_heated(raw, heat), masks, thresholds)
            part |= {"iou": iou[:, 0], "iobb": iobb[:, 0]}
        parts.append(pd.DataFrame(part))
    columns = ["image_id", "energy_in_boxes", "box_share", "iou", "iobb"]
    table = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    hit = points_in_boxes(brightest_points(maps), image_ids, boxes, films)
    table.insert(1, "hit", hit)
    return table.reset_index(drop=True)


def choose_map_threshold(
    maps: np.ndarray,
    image_ids: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    *,
    heat: str = "min-max",
    canvas: int = CANVAS,
) -> float:
    """The threshold with the largest mean IoU; hand it the validation films.

    Args:
        maps: ``(N, h, w)`` raw maps of one class.
        image_ids: ``(N,)``, their films; those without boxes are left out.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        films: ``image_id, rows, columns``.
        heat: as in `localization_scores`. 0.02 to 0.98 is tried by 0.02 for ``"min-max"``, and
            those quantiles of all maps' values for ``"logit"``.
        canvas: side of the canvas in pixels.

    Raises:
        ValueError: no film has boxes, and as in `localization_scores`.
    """
    maps, image_ids = _with_boxes(maps, image_ids, boxes)
    if not len(maps):
        raise ValueError("no film with boxes to choose a threshold on")
    thresholds = LEVELS if heat == "min-max" else np.unique(np.quantile(maps, LEVELS))
    total = sum(
        overlaps(_heated(raw, heat), masks, thresholds)[0].sum(axis=0)
        for _, raw, masks in _on_canvas(maps, image_ids, boxes, films, canvas)
    )
    return float(thresholds[total.argmax()])


def localization_report(
    run: Run, *, class_name: str | None = None, draws: int = DRAWS, seed: int = 0
) -> dict:
    """Judges the maps of a run on test and adds ``localization`` to its ``metrics.json``.

    Thresholds are chosen on validation, the floors are fitted on the boxes of the training films,
    and every mean has a 95 % interval by patient. What cannot be had is ``None`` with a ``reason``.

    Args:
        run: with ``maps``, ``predictions``, ``images`` and ``boxes``.
        class_name: whose maps, on films labelled with it; ``None`` is the run's first class.
        draws: bootstrap samples of patients.
        seed: of the draws.

    Returns:
        of all positive test films with boxes: ``hit_rate, mean_iou`` (min-max), ``mean_iou_logit,
        iobb, energy_in_boxes``, ``iou_accuracy`` and ``iobb_accuracy`` by level, each
        ``value, low, high, n``; ``floors`` (``random_point, fixed_point, fixed_mask``), and the
        paired ``hit_rate_minus_fixed_point`` and ``mean_iou_minus_fixed_mask``. The same of
        ``true_positives``, those called positive at the threshold Youden's rule chose on
        validation. ``challenge_map`` on all test films. ``thresholds``, and the ``prior``.

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
    thresholds: dict[str, float | None] = dict.fromkeys((*HEATS, "score", "challenge"))
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

    often = {"draws": draws, "seed": seed}
    report = {"class_name": class_name, "map_shape": list(test_maps.shape[1:])}
    report |= _summary(rows, **often)
    if thresholds["score"] is not None:
        found = rows[rows["y_score"] >= thresholds["score"]]
        report["true_positives"] = _summary(found, **often)
        called = [films["y_score"] >= thresholds["score"] for films in (val, test)]
        if len(val_boxes):
            thresholds["challenge"] = choose_challenge_threshold(
                val_maps, val["image_id"], called[0], val_boxes, images
            )
            scores = challenge_scores(
                test_maps, test["image_id"], called[1], test_boxes, images, thresholds["challenge"]
            )
            counted = np.isfinite(scores)
            report["challenge_map"] = mean_interval(
                scores[counted], test["patient_id"].to_numpy()[counted], **often
            )
    report["thresholds"] = {"chosen_on": "val", **thresholds}
    report["prior"] = prior and {"point": list(prior.point), "n_films": prior.n_films}
    run.write_json("metrics.json", {**run.metrics, "localization": report})
    return report


def _summary(rows: pd.DataFrame, **often: int) -> dict:
    patients = rows["patient_id"].to_numpy()

    def mean(column: str, *, above: float | None = None, less: str | None = None) -> dict:
        if column not in rows or (less and less not in rows):
            return _NOTHING | {"reason": "no films with boxes in validation or training"}
        values = rows[column].to_numpy()
        if above is not None:
            values = values > above
        if less is not None:
            values = values.astype(np.float64) - rows[less].to_numpy(np.float64)
        return mean_interval(values, patients, **often)

    return {
        "hit_rate": mean("hit"),
        "mean_iou": mean("iou"),
        "mean_iou_logit": mean("iou_logit"),
        "iobb": mean("iobb"),
        "energy_in_boxes": mean("energy_in_boxes"),
        "iou_accuracy": {f"{level:.1f}": mean("iou", above=level) for level in IOU_LEVELS},
        "iobb_accuracy": {f"{level:.1f}": mean("iobb", above=level) for level in IOU_LEVELS},
        "floors": {
            "random_point": mean("box_share"),
            "fixed_point": mean("fixed_point"),
            "fixed_mask": mean("fixed_mask"),
        },
        "hit_rate_minus_fixed_point": mean("hit", less="fixed_point"),
        "mean_iou_minus_fixed_mask": mean("iou", less="fixed_mask"),
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
    image_ids, maps = run.maps()
    row = pd.Series(np.arange(len(image_ids)), index=image_ids).reindex(films["image_id"])
    if row.isna().any():
        raise ValueError(
            f"{run.folder / 'maps.npz'}: {row.isna().sum()} of {len(row)} scored {split} films "
            f"have no map, such as {row.index[row.isna()][0]}"
        )
    chosen = maps[row.to_numpy(np.intp), run.class_names.index(class_name)]
    return films[["image_id", "patient_id", "y_true", "y_score"]], chosen


def _with_boxes(
    maps: np.ndarray, image_ids: np.ndarray, boxes: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    maps, image_ids = np.asarray(maps), np.asarray(image_ids)
    if maps.ndim != 3 or len(maps) != len(image_ids):
        raise ValueError(
            f"maps have shape {maps.shape}, image_ids {image_ids.shape}; (N, h, w) and (N,) go "
            "together"
        )
    if len(set(image_ids.tolist())) < len(image_ids):
        raise ValueError("image_ids: a film stands more than once")
    chosen = np.isin(image_ids.astype(str), boxes["image_id"].to_numpy(str))
    return maps[chosen], image_ids[chosen]


def _on_canvas(
    maps: np.ndarray,
    image_ids: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    canvas: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, upsampled maps and masks of the boxes, some films at a time."""
    for start in range(0, len(maps), _FILMS_AT_ONCE):
        ids = image_ids[start : start + _FILMS_AT_ONCE]
        raw = upsample(maps[start : start + _FILMS_AT_ONCE], canvas)
        yield ids, raw, box_masks(boxes, films, ids, canvas)


def _heated(raw: np.ndarray, heat: str) -> np.ndarray:
    if heat not in HEATS:
        raise ValueError(f"heat is one of {HEATS}, not {heat!r}")
    return min_max(raw) if heat == "min-max" else raw
