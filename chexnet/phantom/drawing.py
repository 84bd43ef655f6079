"""Pencils for the phantom: outlines, strokes and noise on the canvas that films are drawn on.

Body units: u to the right of the film, v downwards; the film's edges lie at -1 and 1 for a patient
of middle size who stands straight. A pose, float (2, 3), is the affine map from there to canvas
pixels. Layers are float32 (CANVAS, CANVAS), 0 to 1.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.interpolate import Akima1DInterpolator

# Side of the square canvas everything is drawn on, in pixels; films are resized from it.
CANVAS = 512


def to_canvas(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Maps points (n, 2) of body units to canvas pixels, float (n, 2)."""
    return np.asarray(points) @ pose[:, :2].T + pose[:, 2]


def curve(points: list[tuple[float, float]], n: int = 40) -> np.ndarray:
    """Returns n points, float (n, 2), of a smooth curve through `points`."""
    knots = np.asarray(points, dtype=float)
    way = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(knots, axis=0).T))])
    return Akima1DInterpolator(way, knots)(np.linspace(0, way[-1], n))


def ellipse(u: float, v: float, half_u: float, half_v: float, *, square: float = 0.0) -> np.ndarray:
    """Returns an ellipse, float (33, 2); the nearer `square` is to 1, the more it is a box."""
    angle = np.linspace(0, 2 * np.pi, 33)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return [u, v] + np.sign(unit) * np.abs(unit) ** (1 - square) * [half_u, half_v]


def fill(outline: np.ndarray, pose: np.ndarray, *, blur: float = 1.0) -> np.ndarray:
    """Returns a filled outline (n, 2), in body units, as float32 canvas, 0 to 1."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.fillPoly(mask, [_fixed(outline, pose)], 255, cv2.LINE_AA, shift=4)
    return _soft(mask, blur)


def stroke(
    paths: Sequence[np.ndarray], width: float, pose: np.ndarray, *, blur: float = 1.0
) -> np.ndarray:
    """Returns paths (n, 2), drawn `width` canvas pixels wide, as float32 canvas, 0 to 1."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    _draw(mask, [_fixed(path, pose) for path in paths], width, 255)
    return _soft(mask, blur)


def stroke_tapered(
    lines: np.ndarray, widths: np.ndarray, pose: np.ndarray, *, full: float, blur: float = 1.0
) -> np.ndarray:
    """Returns straight lines (n, 2, 2) of `widths` (n,), in canvas pixels, as float32 canvas.

    Lines thinner than `full` pixels are the fainter, the thinner they are.
    """
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    steps = np.round(2 * widths) / 2
    for step in np.unique(steps):  # from thin to thick: the thick ones lie on top
        level = 255 * min(1.0, step / full)
        _draw(mask, _fixed(lines[steps == step], pose), step, level)
    return _soft(mask, blur)


def distance_inside(outline: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Returns the distance to an outline (n, 2), float32 canvas, pixels; 0 outside of it.

    The canvas' own edge is no edge: what is cut off there goes on beyond it.
    """
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.fillPoly(mask, [_fixed(outline, pose)], 255, shift=4)
    beyond = CANVAS // 8
    wide = cv2.copyMakeBorder(mask, *[beyond] * 4, cv2.BORDER_REPLICATE)
    inside = slice(beyond, -beyond)
    return cv2.distanceTransform(wide, cv2.DIST_L2, 3)[inside, inside]


def noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Returns a smooth random field, float32 canvas, mean 0, variance about 1, of `cells` waves."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)


def _fixed(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Canvas points as OpenCV's fixed-point numbers with 4 fractional bits."""
    return np.round(to_canvas(points, pose) * 16).astype(np.int32)


def _draw(mask: np.ndarray, lines: Sequence[np.ndarray], width: float, level: float) -> None:
    cv2.polylines(mask, lines, False, level, max(1, round(width)), cv2.LINE_AA, shift=4)


def _soft(mask: np.ndarray, blur: float) -> np.ndarray:
    return cv2.GaussianBlur(mask, (0, 0), blur).astype(np.float32) / 255
