"""Shapes, lines and noise on the square canvas that the phantom's films are drawn on.

Shapes are in body units: u to the right of the film, v downwards; the film's edges are at -1 and 1
for a patient of average size. A pose, float (2, 3), is the affine map to pixels of the canvas.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.interpolate import Akima1DInterpolator

CANVAS = 512  # pixels a side; films are resized from it
Points = Sequence[tuple[float, float]]


def curve(points: Points, n: int = 40) -> np.ndarray:
    """Returns n points, float (n, 2), of a smooth curve through ``points``."""
    knots = np.asarray(points, dtype=float)
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(knots, axis=0).T))])
    return Akima1DInterpolator(length, knots)(np.linspace(0, length[-1], n))


def fill(outline: np.ndarray, pose: np.ndarray, *, blur: float = 1.0) -> np.ndarray:
    """Returns a filled outline (n, 2) as float32 (CANVAS, CANVAS), 0 to 1."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.fillPoly(mask, [_fixed_point(outline, pose)], (255,), cv2.LINE_AA, shift=4)
    return _blurred(mask, blur)


def stroke(
    paths: Sequence[np.ndarray] | np.ndarray, width: float, pose: np.ndarray, *, blur: float = 1.0
) -> np.ndarray:
    """Returns paths (n, 2), ``width`` pixels wide, as float32 (CANVAS, CANVAS), 0 to 1."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    lines = [_fixed_point(path, pose) for path in paths]
    cv2.polylines(mask, lines, False, (255,), max(1, round(width)), cv2.LINE_AA, shift=4)
    return _blurred(mask, blur)


def noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Returns a smooth random field, float32 canvas, mean 0, variance about 1."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)


def _fixed_point(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Pixels of the canvas as OpenCV's fixed-point numbers with 4 fractional bits."""
    return np.round((points @ pose[:, :2].T + pose[:, 2]) * 16).astype(np.int32)


def _blurred(mask: np.ndarray, blur: float) -> np.ndarray:
    return cv2.GaussianBlur(mask, (0, 0), blur).astype(np.float32) / 255
