"""Geometry and scale of class activation maps."""

import cv2
import numpy as np
from numpy.typing import ArrayLike

from chexnet.files import check_number

CANVAS = 256  # pixels along a side of the common canvas


def upsample_map(values: ArrayLike, size: int | tuple[int, int] = CANVAS) -> np.ndarray:
    """Enlarges maps bilinearly to the film they belong to.

    A cell of an ``(h, w)`` map covers 1/h of the film's height and 1/w of its width, and its value
    is the one at the cell's center. Beyond the outer centers the value stays the same.

    Args:
        values: maps ``(h, w)``, or any number of them ``(..., h, w)``.
        size: side of a square film, or its ``(rows, columns)``, pixels.

    Returns:
        float32 ``(..., rows, columns)``, units unchanged.

    Raises:
        ValueError: the shape is another one, a value is NaN or infinite, or ``size`` is not
            positive.

    Example:
        >>> from chexnet.cam import upsample_map
        >>> upsample_map([[0.0, 4.0]], (1, 4))
        array([[0., 1., 3., 4.]], dtype=float32)
    """
    maps = np.asarray(values, np.float32)
    rows, columns = (size, size) if isinstance(size, int | np.integer) else size
    if maps.ndim < 2 or 0 in maps.shape:
        raise ValueError(f"maps have shape {maps.shape}: expected (..., h, w), not empty")
    if rows < 1 or columns < 1:
        raise ValueError(f"size={size}: expected positive numbers of pixels (rows, columns)")
    flat = maps.reshape(-1, *maps.shape[-2:])
    broken = ~np.isfinite(flat).all(axis=(1, 2))
    if broken.any():
        raise ValueError(f"{broken.sum()} of {len(flat)} maps have NaN or infinite values")
    # OpenCV takes (width, height).
    larger = [cv2.resize(m, (columns, rows), interpolation=cv2.INTER_LINEAR) for m in flat]
    return np.stack(larger).reshape(*maps.shape[:-2], rows, columns)


def min_max(maps: np.ndarray) -> np.ndarray:
    """Min-max normalization of each of the maps ``(N, h, w)`` to [0, 1]; a constant one becomes 0.

    Example:
        >>> import numpy as np
        >>> from chexnet.cam import min_max
        >>> min_max(np.array([[[1.0, 2.0, 5.0]]]))
        array([[[0.  , 0.25, 1.  ]]])
    """
    low = maps.min(axis=(1, 2), keepdims=True)
    span = maps.max(axis=(1, 2), keepdims=True) - low
    return np.divide(maps - low, span, out=np.zeros_like(maps), where=span > 0)


def peak_points(maps: np.ndarray) -> np.ndarray:
    """Where each of the maps ``(N, h, w)`` has its maximum: the center of its largest cell.

    A bilinearly upsampled map has it there too, at any size. Of equal cells the first in reading
    order counts.

    Returns:
        float64 ``(N, 2)``: x, y as fractions of the film; NaN for a constant map or one with NaN.

    Example:
        >>> import numpy as np
        >>> from chexnet.cam import peak_points
        >>> peak_points(np.array([[[0.0, 0.0], [0.0, 3.0]]]))
        array([[0.75, 0.75]])
    """
    maps = np.asarray(maps)
    n, height, width = maps.shape
    flat = maps.reshape(n, height * width)
    row, column = np.divmod(flat.argmax(axis=1), width)
    points = np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=1)
    points[~(flat.max(axis=1) > flat.min(axis=1))] = np.nan
    return points


def normalize_map(values: ArrayLike, *, scale: float | None = None) -> np.ndarray:
    """The positive part of a raw map, divided by a scale and clipped to 1.

    Negative values are evidence against the class and become 0. A map without positive values is
    0 everywhere; it is never stretched until its least negative cell looks like evidence.

    Args:
        values: a raw map, any shape, logits.
        scale: the value that becomes 1, above 0; the same for maps that are to be compared.
            ``None`` takes the maximum of ``values``, which shows *where* in this map the evidence
            lies but not *how much* there is.

    Returns:
        float32 of the same shape, 0 to 1.

    Raises:
        ValueError: ``scale`` is not above 0.

    Example:
        >>> from chexnet.cam import normalize_map
        >>> normalize_map([[-2.0, 1.0, 4.0, 8.0]], scale=4)
        array([[0.  , 0.25, 1.  , 1.  ]], dtype=float32)
    """
    if scale is not None:
        check_number("scale", scale, above=0)
    positive = np.maximum(np.asarray(values, np.float32), 0)
    largest = positive.max(initial=0) if scale is None else scale
    if largest == 0:
        return positive
    return np.minimum(positive / np.float32(largest), 1)


def shared_scale(maps: np.ndarray) -> float:
    """A common scale for `normalize_map` of raw maps ``(N, h, w)`` of one class, N > 0.

    It is the 95th percentile of the maps' maxima, so that one outlier does not make all other films
    dim. If that is not above 0, the largest maximum; if that is not either, 1. Maps with NaN or
    infinite values do not count.

    Example:
        >>> import numpy as np
        >>> from chexnet.cam import shared_scale
        >>> shared_scale(np.array([[[0.0, 2.0]], [[-1.0, 4.0]]]))
        3.9
    """
    maps = np.asarray(maps)
    maxima = maps[np.isfinite(maps).all(axis=(1, 2))].max(axis=(1, 2))
    candidates = [np.percentile(maxima, 95), maxima.max(), 1.0] if len(maxima) else [1.0]
    return next(float(scale) for scale in candidates if scale > 0)
