"""How a map and the radiologists' boxes of a film lie on each other.

Maps and boxes meet on a common square canvas, onto which a film is stretched: x and y are scaled
apart, so shares of area, and with them IoU, are those of the film itself. A point is (x, y) in
shares of the film's width and height.
"""

import numpy as np
import pandas as pd

from chexnet.boxes import scale_boxes
from chexnet.cam import upsample_map

CANVAS = 256  # pixels along a side of the common canvas
# Thresholds of a min-max normalised map that are tried on validation.
LEVELS = np.arange(1, 50) / 50
_ROUNDING = 1e-9  # share of a film: a millionth of a pixel


def upsample(maps: np.ndarray, size: int | tuple[int, int] = CANVAS) -> np.ndarray:
    """Maps brought to the canvas, bilinearly, corners aligned by half pixels.

    A cell of an ``(h, w)`` map covers 1/h of the film's height and 1/w of its width, and its value
    is the one at the cell's centre; beyond the outer centres the map goes on unchanged.

    Args:
        maps: ``(N, h, w)``.
        size: the canvas as ``(height, width)``, or one side if square.

    Returns:
        float32 ``(N, height, width)``.

    Raises:
        ValueError: not ``(N, h, w)``, or values that are NaN or infinite.
    """
    maps = np.asarray(maps, np.float32)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"maps have shape {maps.shape}; (N, h, w) is needed")
    if not np.isfinite(maps).all():
        broken = (~np.isfinite(maps)).any(axis=(1, 2)).sum()
        raise ValueError(f"{broken} of {len(maps)} maps hold NaN or infinite values")
    return upsample_map(maps, size)


def min_max(heat: np.ndarray) -> np.ndarray:
    """Each map ``(N, H, W)`` stretched to [0, 1]; a constant one, which points nowhere, is 0."""
    low = heat.min(axis=(1, 2), keepdims=True)
    span = heat.max(axis=(1, 2), keepdims=True) - low
    return np.divide(heat - low, span, out=np.zeros_like(heat), where=span > 0)


def brightest_points(maps: np.ndarray) -> np.ndarray:
    """Where each map is brightest.

    Between cell centres a bilinearly upsampled map is never above the higher of them, so its
    maximum is the centre of the map's brightest cell, however fine the canvas. Of equal cells the
    first in reading order counts. A constant map has no brightest point.

    Args:
        maps: ``(N, h, w)``.

    Returns:
        float64 ``(N, 2)``: x, y as shares of the film; NaN for a constant map.
    """
    maps = np.asarray(maps)
    n, height, width = maps.shape
    flat = maps.reshape(n, height * width)
    row, column = np.divmod(flat.argmax(axis=1), width)
    points = np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=1)
    points[flat.max(axis=1) == flat.min(axis=1)] = np.nan
    return points


def points_in_boxes(
    points: np.ndarray, image_ids: np.ndarray, boxes: pd.DataFrame, films: pd.DataFrame
) -> np.ndarray:
    """Whether each film's point lies in one of its boxes (the pointing game).

    A box holds its left and upper edge, not its right and lower one.

    Args:
        points: ``(N, 2)``: x, y as shares of the film; NaN lies in no box.
        image_ids: ``(N,)``, the film of each point.
        boxes: ``image_id, x, y, width, height``, pixels of the original film.
        films: ``image_id, rows, columns`` of the films.

    Returns:
        bool ``(N,)``.
    """
    boxes = boxes[boxes["image_id"].isin(image_ids)]
    share = unit_boxes(boxes, films)
    # A point on an edge must not fall off it by the rounding of shares.
    where = pd.DataFrame(np.asarray(points, np.float64) + _ROUNDING, columns=["px", "py"])
    where["image_id"] = np.asarray(image_ids, dtype=object)
    both = share.merge(where.drop_duplicates("image_id"), on="image_id")
    inside = (
        (both["px"] >= both["x"])
        & (both["px"] < both["x"] + both["width"])
        & (both["py"] >= both["y"])
        & (both["py"] < both["y"] + both["height"])
    )
    return np.isin(where["image_id"].to_numpy(str), both.loc[inside, "image_id"].to_numpy(str))


def unit_boxes(boxes: pd.DataFrame, films: pd.DataFrame) -> pd.DataFrame:
    """Boxes with ``x, y, width, height`` as shares of their film's width and height.

    Raises:
        ValueError: a film with boxes has no size in ``films``.
    """
    sizes = films.drop_duplicates("image_id").set_index("image_id")[["rows", "columns"]]
    sizes = sizes.reindex(boxes["image_id"])
    if sizes.isna().any(axis=None):
        unknown = sizes.index[sizes.isna().any(axis=1)].unique()
        raise ValueError(f"{len(unknown)} films with boxes have no size, such as {unknown[0]}")
    return scale_boxes(boxes, sizes["rows"].to_numpy(), sizes["columns"].to_numpy(), 1)


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
