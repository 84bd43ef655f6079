"""Overlap of class activation maps with the radiologists' boxes.

Pointing game and mean IoU at a threshold chosen on validation: CheXlocalize (Saporta et al. 2022,
Nature Machine Intelligence 4, 867-878). IoBB and the share of films above an IoU: ChestX-ray8 (Wang
et al. 2017, section 4.3). All boxes of a film are taken together. The RSNA challenge's score
compares single boxes.

Maps and boxes meet on a square canvas. Stretching a film to it keeps shares of area, and with them
IoU.
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from chexnet.cam import CANVAS, min_max, peak_points, upsample_map
from chexnet.labels import boxes_by_film, masks_by_film, points_in_boxes

LEVELS = np.arange(1, 50) / 50  # thresholds of a normalized map that are tried on validation
_FILMS_AT_ONCE = 32  # keeps upsampled maps and masks below 40 MB


def localization_scores(
    maps: np.ndarray,
    image_ids: ArrayLike,
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    *,
    threshold: float | None = None,
    normalize: bool = True,
) -> pd.DataFrame:
    """Compares the map of each film that has boxes with them.

    - ``hit`` (pointing game): the maximum of the upsampled map lies in a box. A constant map is a
      miss.
    - ``energy_in_boxes``: share of the map's positive part that lies in boxes; 0 if it has none.
    - ``box_share``: share of the film that lies in boxes. It is the hit rate of a random point, and
      the energy of a constant positive map.
    - ``iou``, ``iobb``: of the thresholded map with the boxes; see `overlaps`.

    Args:
        maps: ``(N, h, w)`` raw maps of one class, which cover the whole film.
        image_ids: ``(N,)``, their films.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        images: ``image_id, rows, columns`` of the films with boxes.
        threshold: of the map, chosen on other films (`choose_map_threshold`); without it there are
            no ``iou`` and ``iobb``.
        normalize: whether ``threshold`` is of the map min-max normalized film by film, as in
            CheXlocalize, or of the raw map, in logits.

    Returns:
        one row a film with boxes, in the order of ``image_ids``: ``image_id, hit`` (bool),
        ``energy_in_boxes, box_share``, and ``iou, iobb``, floats in [0, 1].

    Raises:
        ValueError: maps are not ``(N, h, w)`` of finite numbers, an id is repeated, or a film with
            boxes has no size.

    Example:
        >>> from chexnet.evaluation import localization_scores
        >>> from chexnet.runs import Run
        >>> run = Run("output/demo")
        >>> ids, maps = run.maps()
        >>> table = localization_scores(maps[:, 0], ids, run.boxes, run.images, threshold=0.5)
        >>> table.columns.tolist()
        ['image_id', 'hit', 'energy_in_boxes', 'box_share', 'iou', 'iobb']
    """
    maps, image_ids = _with_boxes(maps, image_ids, boxes)
    parts = []
    for ids, raw, masks in _on_canvas(maps, image_ids, boxes, images, CANVAS):
        positive = raw.clip(0)
        total = positive.sum(axis=(1, 2), dtype=np.float64)
        inside = (positive * masks).sum(axis=(1, 2), dtype=np.float64)
        part = {
            "image_id": ids,
            "energy_in_boxes": np.divide(inside, total, out=np.zeros(len(ids)), where=total > 0),
            "box_share": masks.mean(axis=(1, 2), dtype=np.float64),
        }
        if threshold is not None:
            iou, iobb = overlaps(min_max(raw) if normalize else raw, masks, [threshold])
            part |= {"iou": iou[:, 0], "iobb": iobb[:, 0]}
        parts.append(pd.DataFrame(part))
    columns = ["image_id", "energy_in_boxes", "box_share", "iou", "iobb"]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    table.insert(1, "hit", points_in_boxes(peak_points(maps), image_ids, boxes, images))
    return table


def choose_map_threshold(
    maps: np.ndarray,
    image_ids: ArrayLike,
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    *,
    normalize: bool = True,
) -> tuple[float, float]:
    """The threshold with the largest mean IoU, and that IoU, for validation films.

    Takes what `localization_scores` takes. Tried are 0.02 to 0.98 by 0.02 of normalized maps, and
    those quantiles of all values of raw maps.
    """
    maps, image_ids = _with_boxes(maps, image_ids, boxes)
    if not len(maps):
        raise ValueError("no film with boxes to choose a threshold on")
    thresholds = LEVELS if normalize else np.unique(np.quantile(maps, LEVELS))
    iou = iou_at(maps, image_ids, boxes, images, thresholds, normalize=normalize)
    mean = iou.mean(axis=0)
    return float(thresholds[mean.argmax()]), float(mean.max())


def iou_at(
    maps: np.ndarray,
    image_ids: ArrayLike,
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    thresholds: ArrayLike,
    *,
    normalize: bool = False,
    canvas: int = CANVAS,
) -> np.ndarray:
    """IoU of maps with the boxes of their films at several thresholds, float64 ``(N, T)``.

    Takes what `localization_scores` takes; ``thresholds`` ``(T,)`` are ascending.

    Example:
        >>> from chexnet.evaluation import iou_at
        >>> from chexnet.runs import Run
        >>> run = Run("output/demo")
        >>> ids, maps = run.maps()
        >>> iou_at(maps[:2, 0], ids[:2], run.boxes, run.images, [0.0, 0.5, 1.0]).shape
        (2, 3)
    """
    found = [np.empty((0, np.size(thresholds)))]
    for _, raw, masks in _on_canvas(maps, image_ids, boxes, images, canvas):
        found.append(overlaps(min_max(raw) if normalize else raw, masks, thresholds)[0])
    return np.concatenate(found)


def overlaps(
    maps: np.ndarray, masks: np.ndarray, thresholds: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """IoU and IoBB of thresholded maps with boxes.

    A pixel is marked if the map is at or above the threshold. IoBB is the intersection over the
    marked area: the share of it that lies in boxes. If nothing is marked, both are 0.

    Args:
        maps: ``(N, H, W)``.
        masks: ``(N, H, W)`` in [0, 1], the share of each pixel that lies in boxes.
        thresholds: ``(T,)``, ascending.

    Returns:
        IoU and IoBB, each float64 ``(N, T)`` in [0, 1].
    """
    thresholds = np.asarray(thresholds, np.float32)
    marked, shared = np.empty((2, len(maps), len(thresholds)))
    for film, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        # One pass for all thresholds: how many of them each pixel reaches, summed from the top.
        reached = np.searchsorted(thresholds, values.ravel(), side="right")
        for area, weights in ((marked, None), (shared, mask.ravel())):
            counts = np.bincount(reached, weights, minlength=len(thresholds) + 1)
            area[film] = counts[:0:-1].cumsum()[::-1]
    boxed = np.asarray(masks, np.float64).sum(axis=(1, 2))[:, np.newaxis]
    iobb = np.divide(shared, marked, out=np.zeros_like(shared), where=marked > 0)
    union = marked + boxed - shared  # 0 where nothing is marked and the boxes lie outside the film
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), iobb


def _with_boxes(
    maps: np.ndarray, image_ids: ArrayLike, boxes: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """The maps and ids of the films that have boxes."""
    maps, image_ids = np.asarray(maps), np.asarray(image_ids)
    if maps.ndim != 3 or len(maps) != len(image_ids):
        shapes = f"maps have shape {maps.shape}, image_ids {image_ids.shape}"
        raise ValueError(f"{shapes}: expected (N, h, w) and (N,)")
    if len(set(image_ids.tolist())) < len(image_ids):
        raise ValueError("image_ids: duplicate ids")
    chosen = np.isin(image_ids.astype(str), boxes["image_id"].to_numpy(str))
    return maps[chosen], image_ids[chosen]


def _on_canvas(
    maps: np.ndarray,
    image_ids: ArrayLike,
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    canvas: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, upsampled maps and masks of the boxes, some films at a time."""
    image_ids = np.asarray(image_ids)
    by_film = boxes_by_film(boxes[boxes["image_id"].isin(image_ids)], images)
    # In a notebook a bar is four widgets, also before its delay: none for one film of the explorer.
    short = len(maps) <= _FILMS_AT_ONCE
    with tqdm(
        total=len(maps), desc="comparing maps with boxes", unit=" films", delay=2, disable=short
    ) as bar:
        for start in range(0, len(maps), _FILMS_AT_ONCE):
            ids = image_ids[start : start + _FILMS_AT_ONCE]
            raw = upsample_map(maps[start : start + _FILMS_AT_ONCE], canvas)
            yield ids, raw, masks_by_film(by_film, ids, raw.shape[1:])
            bar.update(len(ids))


# RSNA Pneumonia Detection Challenge (Kaggle, 2018), page "Evaluation": IoU 0.4 to 0.75 by 0.05.
CHALLENGE_IOU = np.arange(8, 16) / 20
# Share of the film below which a region is no box: over 99.5 % of RSNA's 9,555 boxes are larger.
_SMALLEST = 0.005
_CANVAS = 128  # pixels a side of the map that boxes are extracted from


def extract_boxes(values: np.ndarray, threshold: float) -> np.ndarray:
    """Bounding boxes of the connected regions of a map ``(H, W)`` at or above a threshold.

    Float64 ``(k, 5)``: x, y, width, height as shares of the film, and the confidence, which is the
    maximum of the region; in descending order. Regions below 0.5 % of the film are left out.
    """
    height, width = values.shape
    number, labels, statistics, _ = cv2.connectedComponentsWithStats(
        (values >= threshold).astype(np.uint8), connectivity=8
    )
    found = []
    for region in range(1, number):  # 0 is the background
        x, y, w, h, area = statistics[region]
        if area >= _SMALLEST * values.size:
            inside = labels[y : y + h, x : x + w] == region
            confidence = values[y : y + h, x : x + w][inside].max()
            found.append((x / width, y / height, w / width, h / height, confidence))
    table = np.array(found, np.float64).reshape(-1, 5)
    return table[np.argsort(-table[:, 4], kind="stable")]


def box_iou(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """IoU of each box ``(a, 4)`` with each of another set ``(b, 4)``, float64 ``(a, b)``."""
    a, b = np.asarray(first, np.float64)[:, np.newaxis], np.asarray(second, np.float64)[np.newaxis]
    near = np.maximum(a[..., :2], b[..., :2])
    far = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = (far - near).clip(0).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def challenge_score(found: np.ndarray, boxes: np.ndarray) -> float:
    """The RSNA challenge's score of one film: mean over IoU thresholds of TP / (TP + FP + FN).

    Each found box ``(k, 4 or more)``, by descending confidence, is matched with the unmatched true
    box ``(m, 4)`` that it overlaps most. It is a hit if their IoU is above the threshold. A film
    without true boxes scores 0 if a box was found, and is not counted (NaN) otherwise.
    """
    found, boxes = np.asarray(found)[:, :4], np.asarray(boxes)[:, :4]
    if not len(boxes):
        return 0.0 if len(found) else np.nan
    overlap = box_iou(found, boxes)
    scores = []
    for threshold in CHALLENGE_IOU:
        free = np.ones(len(boxes), bool)
        for row in overlap:
            best = np.where(free, row, -1).argmax()
            if row[best] > threshold:
                free[best] = False
        hits = (~free).sum()
        # TP + FP are the found boxes, FN the true boxes without a match.
        scores.append(hits / (len(found) + len(boxes) - hits))
    return float(np.mean(scores))


def challenge_scores(
    maps: np.ndarray,
    image_ids: ArrayLike,
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    positive: Iterable[bool],
    thresholds: ArrayLike,
) -> np.ndarray:
    """The challenge's score of boxes extracted from maps, ``(N, T)``; NaN for films not counted.

    ``positive`` ``(N,)``: whether the model predicts the finding; other films get no box. The
    ``thresholds`` ``(T,)`` are of the upsampled map, min-max normalized.
    """
    thresholds, image_ids = np.asarray(thresholds), np.asarray(image_ids)
    true = boxes_by_film(boxes[boxes["image_id"].isin(image_ids)], images)
    no_boxes = np.empty((0, 4))
    scores = np.empty((len(maps), len(thresholds)))
    for row, raw, image_id, predicted in zip(scores, maps, image_ids, positive, strict=True):
        its_boxes = true.get(image_id, no_boxes)
        if predicted:
            values = min_max(upsample_map(raw[np.newaxis], _CANVAS))[0]
            row[:] = [challenge_score(extract_boxes(values, t), its_boxes) for t in thresholds]
        else:
            row[:] = challenge_score(no_boxes, its_boxes)
    return scores


def choose_challenge_threshold(
    maps: np.ndarray,
    image_ids: ArrayLike,
    boxes: pd.DataFrame,
    images: pd.DataFrame,
    positive: Iterable[bool],
) -> float:
    """The lowest threshold, of 0.1 to 0.9 by 0.1, with the largest mean score on validation."""
    tried = LEVELS[4::5]
    scores = challenge_scores(maps, image_ids, boxes, images, positive, tried)
    counted = np.isfinite(scores)
    if not counted.any():
        raise ValueError("no film with a box to choose a threshold on")
    return float(tried[(np.nansum(scores, axis=0) / counted.sum(axis=0)).argmax()])
