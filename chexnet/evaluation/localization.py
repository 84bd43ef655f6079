"""How well maps find the radiologists' boxes.

Definitions follow CheXlocalize (Saporta et al. 2022, Nature Machine Intelligence 4, 867-878:
pointing game, mean IoU at a threshold chosen on validation) and ChestX-ray8 (Wang et al. 2017,
section 4.3: IoBB, share of films above an IoU), with all boxes of a film taken together.

How a map and the radiologists' boxes of a film lie on each other.

Maps and boxes meet on a common square canvas, onto which a film is stretched: x and y are scaled
apart, so shares of area, and with them IoU, are those of the film itself. A point is (x, y) in
shares of the film's width and height.

Boxes cut out of a map, and the score that the RSNA challenge gave to boxes.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.cam import CANVAS, min_max, peak_points, upsample_map
from chexnet.labels import box_masks, boxes_by_film, points_in_boxes

# Thresholds of a min-max normalised map that are tried on validation.
LEVELS = np.arange(1, 50) / 50


def overlaps(
    heat: np.ndarray, masks: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """IoU and IoBB of maps cut at each of several thresholds.

    A pixel belongs to the cut map where its heat is at or above the threshold. IoBB is the
    intersection over the area of what the map marks (Wang et al. 2017, ChestX-ray8, section 4.3):
    the share of it that lies in boxes. A map that marks nothing has IoU and IoBB 0.

    Args:
        heat: ``(N, H, W)``.
        masks: ``(N, H, W)`` in [0, 1], the share of each pixel that lies in boxes, not all 0.
        thresholds: ``(T,)``, rising.

    Returns:
        IoU and IoBB, each float64 ``(N, T)`` in [0, 1].
    """
    thresholds = np.asarray(thresholds, np.float32)
    marked, shared = np.empty((2, len(heat), len(thresholds)))
    for film, (values, mask) in enumerate(zip(heat, masks, strict=True)):
        # One pass for all thresholds: how many of them each pixel reaches, summed from the top.
        reached = np.searchsorted(thresholds, values.ravel(), side="right")
        bins = len(thresholds) + 1
        marked[film] = _from_above(np.bincount(reached, minlength=bins))
        shared[film] = _from_above(np.bincount(reached, weights=mask.ravel(), minlength=bins))
    boxed = np.asarray(masks, np.float64).sum(axis=(1, 2))[:, np.newaxis]
    iobb = np.divide(shared, marked, out=np.zeros_like(shared), where=marked > 0)
    return shared / (marked + boxed - shared), iobb


def _from_above(histogram: np.ndarray) -> np.ndarray:
    return np.cumsum(histogram[::-1])[::-1][1:]


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
    positive: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    threshold: float,
) -> np.ndarray:
    """The challenge's score of boxes cut out of maps, film by film.

    Args:
        maps: ``(N, h, w)`` raw maps of one class.
        image_ids: ``(N,)``, their films, with and without boxes.
        positive: bool ``(N,)``, whether the model predicts the finding; other films get no box.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        films: ``image_id, rows, columns`` of the films with boxes.
        threshold: where to cut the map, upsampled and stretched to [0, 1].

    Returns:
        float64 ``(N,)`` in [0, 1]; NaN for films that do not count.
    """
    return _scores_by_threshold(maps, image_ids, positive, boxes, films, np.array([threshold]))[
        :, 0
    ]


def choose_challenge_threshold(
    maps: np.ndarray,
    image_ids: np.ndarray,
    positive: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
) -> float:
    """The threshold, of 0.1 to 0.9 by 0.1, with the best mean score; hand it validation films.

    Arguments are those of `challenge_scores`. Of equal thresholds the lowest is taken.

    Raises:
        ValueError: no film counts.
    """
    tried = LEVELS[4::5]
    scores = _scores_by_threshold(maps, image_ids, positive, boxes, films, tried)
    counted = np.isfinite(scores)
    if not counted.any():
        raise ValueError("no film with a box to choose a threshold on")
    return float(tried[(np.nansum(scores, axis=0) / counted.sum(axis=0)).argmax()])


def _scores_by_threshold(
    maps: np.ndarray,
    image_ids: np.ndarray,
    positive: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    thresholds: np.ndarray,
) -> np.ndarray:
    its_boxes = boxes[boxes["image_id"].isin(image_ids)]
    true = boxes_by_film(its_boxes, films)
    none = np.empty((0, 4))
    scores = np.empty((len(maps), len(thresholds)))
    for row, raw, image_id, predicted in zip(scores, maps, image_ids, positive, strict=True):
        its = true.get(image_id, none)
        if not predicted:
            row[:] = challenge_score(none, its)
            continue
        heat = min_max(upsample_map(raw[np.newaxis], _CANVAS))[0]
        row[:] = [challenge_score(cut_boxes(heat, threshold), its) for threshold in thresholds]
    return scores


HEATS = ("min-max", "logit")
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
    hit = points_in_boxes(peak_points(maps), image_ids, boxes, films)
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
    thresholds, iou = mean_iou_by_threshold(maps, image_ids, boxes, films, heat=heat, canvas=canvas)
    return float(thresholds[iou.argmax()])


def mean_iou_by_threshold(
    maps: np.ndarray,
    image_ids: np.ndarray,
    boxes: pd.DataFrame,
    films: pd.DataFrame,
    *,
    heat: str = "min-max",
    canvas: int = CANVAS,
) -> tuple[np.ndarray, np.ndarray]:
    """What `choose_map_threshold` chooses from; arguments and errors as there.

    Returns:
        the thresholds that are tried, rising, and the mean IoU at each, float64 ``(T,)``.
    """
    maps, image_ids = _with_boxes(maps, image_ids, boxes)
    if not len(maps):
        raise ValueError("no film with boxes to choose a threshold on")
    thresholds = LEVELS if heat == "min-max" else np.unique(np.quantile(maps, LEVELS))
    total = sum(
        overlaps(_heated(raw, heat), masks, thresholds)[0].sum(axis=0)
        for _, raw, masks in _on_canvas(maps, image_ids, boxes, films, canvas)
    )
    return thresholds, total / len(maps)


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
    with tqdm(total=len(maps), desc="maps held against boxes", unit=" films", delay=2) as bar:
        for start in range(0, len(maps), _FILMS_AT_ONCE):
            ids = image_ids[start : start + _FILMS_AT_ONCE]
            raw = upsample_map(maps[start : start + _FILMS_AT_ONCE], canvas)
            yield ids, raw, box_masks(boxes, films, ids, canvas)
            bar.update(len(ids))


def _heated(raw: np.ndarray, heat: str) -> np.ndarray:
    if heat not in HEATS:
        raise ValueError(f"heat is one of {HEATS}, not {heat!r}")
    return min_max(raw) if heat == "min-max" else raw
