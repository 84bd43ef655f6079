"""Geometry and scale of class activation maps: enlarged to a film, stretched, shown as heat."""

import cv2
import numpy as np

CANVAS = 256  # pixels along a side of the common canvas


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


_HOTTEST = 95  # percentile of the maps' maxima that gets the last colour


def upsample_map(values: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Enlarges maps bilinearly to the film they belong to.

    Each position of a map stands for an equal cell of the film, so positions are cell centres
    and the border keeps the value of the outermost cells.

    Args:
        values: maps ``(h, w)``, or any number of them ``(..., h, w)``.
        size: side of a square film, or its ``(rows, columns)``, pixels.

    Returns:
        float32 ``(..., rows, columns)``, units unchanged.

    Raises:
        ValueError: ``values`` is no map, or ``size`` is not positive.
    """
    values = np.asarray(values, np.float32)
    rows, columns = (size, size) if np.isscalar(size) else size
    if values.ndim < 2 or 0 in values.shape:
        raise ValueError(f"values has shape {values.shape}: allowed is (..., h, w), not empty")
    if rows < 1 or columns < 1:
        raise ValueError(f"size={size}: allowed are positive numbers of pixels (rows, columns)")
    flat = values.reshape(-1, *values.shape[-2:])
    # OpenCV takes (width, height), the other way round than every shape here.
    larger = [cv2.resize(m, (columns, rows), interpolation=cv2.INTER_LINEAR) for m in flat]
    return np.stack(larger).reshape(*values.shape[:-2], rows, columns)


def heat(values: np.ndarray, *, scale: float | None = None) -> np.ndarray:
    """Turns a raw map into heat to show: ReLU, then divided by a scale, at most 1.

    Evidence against the class is not heat. A map without any evidence for it is 0 everywhere,
    never stretched until its least negative spot glows.

    Args:
        values: a raw map, any shape, logits.
        scale: the value that becomes 1, above 0. Give the same scale to maps that are to be
            compared; ``None`` takes the maximum of ``values``, which shows *where* in this map
            alone and not *how much*.

    Returns:
        float32 of the same shape, 0 to 1.

    Raises:
        ValueError: ``scale`` is not above 0.
    """
    if scale is not None and not scale > 0:
        raise ValueError(f"scale={scale}: allowed is a number above 0")
    positive = np.maximum(np.asarray(values, np.float32), 0)
    largest = positive.max(initial=0) if scale is None else scale
    if largest == 0:
        return positive
    return np.minimum(positive / np.float32(largest), 1)


def shared_scale(maps: np.ndarray) -> float:
    """A scale for `heat` under which films can be compared.

    Args:
        maps: raw maps ``(N, h, w)`` of one class, N > 0.

    Returns:
        the 95th percentile of the maps' maxima, so that one odd film does not leave all others
        dim. Where that is not above zero, because few maps hold evidence, the largest maximum; and
        where none does, 1, under which every film stays grey.
    """
    maxima = np.asarray(maps).max(axis=(1, 2))
    candidates = [np.percentile(maxima, _HOTTEST), maxima.max(), 1.0]
    return next(float(scale) for scale in candidates if scale > 0)
