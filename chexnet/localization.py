"""How well maps find the radiologists' boxes.

Definitions follow CheXlocalize (Saporta et al. 2022, Nature Machine Intelligence 4, 867-878:
pointing game, mean IoU at a threshold chosen on validation) and ChestX-ray8 (Wang et al. 2017,
section 4.3: IoBB, share of films above an IoU), with all boxes of a film taken together.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.boxes import box_masks
from chexnet.overlap import (
    CANVAS,
    LEVELS,
    brightest_points,
    min_max,
    overlaps,
    points_in_boxes,
    upsample,
)

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
            raw = upsample(maps[start : start + _FILMS_AT_ONCE], canvas)
            yield ids, raw, box_masks(boxes, films, ids, canvas)
            bar.update(len(ids))


def _heated(raw: np.ndarray, heat: str) -> np.ndarray:
    if heat not in HEATS:
        raise ValueError(f"heat is one of {HEATS}, not {heat!r}")
    return min_max(raw) if heat == "min-max" else raw
