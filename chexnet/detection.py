"""Boxes cut out of a map, and the score that the RSNA challenge gave to boxes."""

import cv2
import numpy as np
import pandas as pd

from chexnet.overlap import LEVELS, min_max, unit_boxes, upsample

# RSNA Pneumonia Detection Challenge (Kaggle, 2018), page "Evaluation": IoU 0.4 to 0.75 by 0.05.
CHALLENGE_IOU = np.arange(8, 16) / 20
# Share of the film below which a spot is no box: over 99.5 % of RSNA's 9,555 boxes are larger.
_SMALLEST = 0.005
_CANVAS = 128  # pixels a side of the map that boxes are cut from


def cut_boxes(heat: np.ndarray, threshold: float) -> np.ndarray:
    """Boxes around the connected spots of a map at or above a threshold.

    Args:
        heat: ``(H, W)``.
        threshold: in the units of ``heat``.

    Returns:
        float64 ``(k, 5)``: x, y, width, height as shares of the film, and the confidence, the
        spot's highest heat; the surest first. Spots below 0.5 % of the film are left out.
    """
    height, width = heat.shape
    number, labels, facts, _ = cv2.connectedComponentsWithStats(
        (heat >= threshold).astype(np.uint8), connectivity=8
    )
    found = []
    for spot in range(1, number):  # 0 is the background
        x, y, w, h, area = facts[spot]
        if area >= _SMALLEST * heat.size:
            inside = labels[y : y + h, x : x + w] == spot
            confidence = heat[y : y + h, x : x + w][inside].max()
            found.append((x / width, y / height, w / width, h / height, confidence))
    found = np.array(found, np.float64).reshape(-1, 5)
    return found[np.argsort(-found[:, 4], kind="stable")]


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of every box of one set with every box of another.

    Args:
        first: ``(a, 4)``: x, y, width, height.
        second: ``(b, 4)``.

    Returns:
        float64 ``(a, b)`` in [0, 1].
    """
    a, b = np.asarray(first, np.float64)[:, np.newaxis], np.asarray(second, np.float64)[np.newaxis]
    near = np.maximum(a[..., :2], b[..., :2])
    far = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = (far - near).clip(0).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def challenge_score(found: np.ndarray, boxes: np.ndarray) -> float:
    """The challenge's score of one film: mean over IoU thresholds of TP / (TP + FP + FN).

    Found boxes, the surest first, each take the free true box they overlap most; a hit is an IoU
    above the threshold. A film without true boxes scores 0 if any box was found, and is not
    counted if none was; the challenge's score is the mean over the films that count.

    Args:
        found: ``(k, 4)`` or more columns, x, y, width, height, the surest first.
        boxes: ``(m, 4)``, the radiologists' boxes.

    Returns:
        in [0, 1]; NaN for a film that does not count.
    """
    found, boxes = np.asarray(found)[:, :4], np.asarray(boxes)[:, :4]
    if not len(boxes):
        return 0.0 if len(found) else np.nan
    overlap = box_iou(found, boxes)
    scores = []
    for threshold in CHALLENGE_IOU:
        free = np.ones(len(boxes), bool)
        hits = 0
        for row in overlap:
            best = np.where(free, row, -1).argmax()
            if free[best] and row[best] > threshold:
                free[best] = False
                hits += 1
        # TP + FP are the found boxes, FN the true ones that nobody took.
        scores.append(hits / (len(found) + len(boxes) - hits))
    return float(np.mean(scores))


def challenge_scores(
    maps: np.ndarray,
    image_ids: np.ndarray,
    called: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    threshold: float,
) -> np.ndarray:
    """The challenge's score of boxes cut out of maps, film by film.

    Args:
        maps: ``(N, h, w)`` raw maps of one class.
        image_ids: ``(N,)``, their films, with and without boxes.
        called: bool ``(N,)``, whether the model calls the film positive; the others get no box.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        films: ``image_id, rows, columns`` of the films with boxes.
        threshold: where to cut the map, upsampled and stretched to [0, 1].

    Returns:
        float64 ``(N,)`` in [0, 1]; NaN for films that do not count.
    """
    return _scores_by_threshold(maps, image_ids, called, boxes, films, np.array([threshold]))[:, 0]


def choose_challenge_threshold(
    maps: np.ndarray,
    image_ids: np.ndarray,
    called: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
) -> float:
    """The threshold, of 0.1 to 0.9 by 0.1, with the best mean score; hand it validation films.

    Arguments are those of `challenge_scores`. Of equal thresholds the lowest is taken.

    Raises:
        ValueError: no film counts.
    """
    tried = LEVELS[4::5]
    scores = _scores_by_threshold(maps, image_ids, called, boxes, films, tried)
    counted = np.isfinite(scores)
    if not counted.any():
        raise ValueError("no film with a box to choose a threshold on")
    return float(tried[(np.nansum(scores, axis=0) / counted.sum(axis=0)).argmax()])


def _scores_by_threshold(
    maps: np.ndarray,
    image_ids: np.ndarray,
    called: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    thresholds: np.ndarray,
) -> np.ndarray:
    its_boxes = boxes[boxes["image_id"].isin(image_ids)]
    true = {
        image_id: group[["x", "y", "width", "height"]].to_numpy(np.float64)
        for image_id, group in unit_boxes(its_boxes, films).groupby("image_id")
    }
    none = np.empty((0, 4))
    scores = np.empty((len(maps), len(thresholds)))
    for row, raw, image_id, positive in zip(scores, maps, image_ids, called, strict=True):
        its = true.get(image_id, none)
        if not positive:
            row[:] = challenge_score(none, its)
            continue
        heat = min_max(upsample(raw[np.newaxis], _CANVAS))[0]
        row[:] = [challenge_score(cut_boxes(heat, threshold), its) for threshold in thresholds]
    return scores
