"""CLAHE, contrast limited adaptive histogram equalisation: what OpenCV gives, in less time.

OpenCV's own is what a film's first epoch takes longest for (`benchmarks/bench_generator.py`). Bytes
are the same where OpenCV rounds every product, as on x86-64; elsewhere a few differ by 1. The loops
are written out because Numba compiles them faster than the same in NumPy's words.
"""

from numbers import Integral

import cv2
import numpy as np
from numba import njit


def equalise(
    film: np.ndarray,
    clip_limit: float = 2.0,
    tiles: int = 8,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """What ``cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(film)`` gives.

    The film is cut into tiles, each with a table of its own from its clipped histogram; a pixel is
    looked up in the four tables about it, bilinearly (Zuiderveld, Graphics Gems IV, 1994).

    Args:
        film: uint8 ``(H, W)``, 0 = black = air.
        clip_limit: most pixels of one grey value in a tile, in means of its histogram; above 0.
        tiles: along each side, at least 1.
        out: uint8 ``(H, W)``, where to write the result; may be the film itself.

    Returns:
        uint8 ``(H, W)``; ``out`` where it is given.

    Raises:
        ValueError: the film or ``out`` is of another kind, or a setting is not allowed.
    """
    if film.dtype != np.uint8 or film.ndim != 2 or not film.size:
        raise ValueError(f"film: {film.dtype} {film.shape}; allowed is uint8 (H, W)")
    if out is not None and (out.dtype != np.uint8 or out.shape != film.shape):
        raise ValueError(f"out: {out.dtype} {out.shape}; allowed is uint8 {film.shape}")
    if not (clip_limit > 0 and isinstance(tiles, Integral) and tiles >= 1):
        raise ValueError(
            f"clip_limit={clip_limit}, tiles={tiles}: allowed are clip_limit > 0, whole tiles >= 1"
        )
    whole = film
    if film.shape[0] % tiles or film.shape[1] % tiles:
        # A side that needs no rows or columns gets a whole set too, as in OpenCV.
        down, right = (tiles - side % tiles for side in film.shape)
        whole = cv2.copyMakeBorder(film, 0, down, 0, right, cv2.BORDER_REFLECT_101)
    height, width = whole.shape[0] // tiles, whole.shape[1] // tiles
    most = max(int(min(clip_limit * height * width / 256, height * width)), 1)
    out = np.empty_like(film) if out is None else out
    tables = _tables(whole, height, width, most)
    _look_up(film, tables, *_middles(film.shape[0], height), *_middles(film.shape[1], width), out)
    return out


def _middles(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where along a side the middles of tiles lie, and of every pixel how far past the last it is.

    Args:
        length: of the side in pixels.
        size: of a tile.

    Returns:
        int64 ``(intervals + 1,)``, the first pixel of every interval between two middles, the ends
        of the side included; float32 ``(length,)``, a share of ``size``.
    """
    # Everything from here on is float32, and in OpenCV's order: the same rounding, the same bytes.
    place = np.arange(length, dtype=np.float32) * (np.float32(1) / np.float32(size))
    place -= np.float32(0.5)
    last = np.floor(place)
    starts = np.searchsorted(last, np.arange(-1, int(last[-1]) + 2))
    return starts, place - last


@njit(nogil=True, cache=True)
def _tables(film: np.ndarray, height: int, width: int, most: int) -> np.ndarray:
    """Of every tile, the new grey value of each old one: float32 ``(down, across, 256)``."""
    down, across = film.shape[0] // height, film.shape[1] // width
    tables = np.empty((down, across, 256), np.float32)
    scale = np.float32(255) / np.float32(height * width)
    # Neighbours are often equal, and adding to a number twice means waiting for the first sum.
    apart = np.empty((4, 256), np.int32)
    counts = np.empty(256, np.int32)
    for row in range(down):
        for column in range(across):
            apart[:] = 0
            for y in range(row * height, (row + 1) * height):
                _count(film[y, column * width : (column + 1) * width], apart)
            for grey in range(256):
                counts[grey] = apart[0, grey] + apart[1, grey] + apart[2, grey] + apart[3, grey]
            _clip(counts, most)
            below = 0
            for grey in range(256):
                below += counts[grey]
                tables[row, column, grey] = np.rint(np.float32(below) * scale)
    return tables


@njit(nogil=True, cache=True)
def _count(line: np.ndarray, apart: np.ndarray) -> None:
    for x in range(line.size):
        apart[x % 4, line[x]] += 1


@njit(nogil=True, cache=True)
def _clip(counts: np.ndarray, most: int) -> None:
    """Takes what is above the limit and spreads it: a share for all, the rest at equal steps."""
    spare = 0
    for grey in range(256):
        if counts[grey] > most:
            spare += counts[grey] - most
            counts[grey] = most
    for grey in range(256):
        counts[grey] += spare // 256
    rest = spare % 256
    for i in range(rest):
        counts[i * (256 // rest)] += 1


@njit(nogil=True, cache=True)
def _look_up(
    film: np.ndarray,
    tables: np.ndarray,
    row_starts: np.ndarray,
    lower: np.ndarray,
    column_starts: np.ndarray,
    right: np.ndarray,
    out: np.ndarray,
) -> None:
    """Every pixel between the tables of the four tiles whose middles lie about it."""
    down, across = tables.shape[0] - 1, tables.shape[1] - 1
    left = np.float32(1) - right
    line = np.empty_like(film[0])  # else no pixel could be read before the last is written
    for i in range(row_starts.size - 1):
        above, below = tables[max(i - 1, 0)], tables[min(i, down)]
        for y in range(row_starts[i], row_starts[i + 1]):
            for x in range(line.size):
                line[x] = film[y, x]
            for j in range(column_starts.size - 1):
                here = slice(column_starts[j], column_starts[j + 1])
                before, after = max(j - 1, 0), min(j, across)
                _blend(
                    line[here], above[before], above[after], below[before], below[after],
                    left[here], right[here], np.float32(1) - lower[y], lower[y], out[y, here],
                )  # fmt: skip


@njit(nogil=True, cache=True)
def _blend(line, above_left, above_right, below_left, below_right, left, right, upper, lower, out):
    # A function of its own: the compiler checks once a line that nothing overlaps.
    for x in range(line.size):
        grey = line[x]
        above = above_left[grey] * left[x] + above_right[grey] * right[x]
        below = below_left[grey] * left[x] + below_right[grey] * right[x]
        out[x] = np.uint8(np.int32(np.rint(above * upper + below * lower)))
