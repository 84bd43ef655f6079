"""Whether a decoded lossless JPEG (ITU-T T.81 annex H) is all that its stream holds.

Decoders fill in what is missing of a stream. But the pixels tell exactly how
many bits they took: each is coded as its difference from a prediction by its neighbors.
"""

import struct

import numpy as np

from chexnet.dicom.header import FilmError
from chexnet.dicom.jpeg import DHT, DRI, MARKER, RESTART, SOS, segments
from chexnet.files import SOI

_SOF3 = 0xC3  # T.81 table B.1: a lossless frame
_SLACK = 16  # bytes of padding that a device may put behind a scan
_ROWS = 256  # at a time, which keeps the memory small
# Bits behind the code of a difference (table H.2), for each difference modulo 65536.
_CATEGORY = np.frexp(np.abs(np.arange(65536, dtype=np.uint16).view(np.int16).astype(float)))[1]


def check_lossless(stream: bytes, pixels: np.ndarray) -> None:
    """Compares the bits that decoded pixels take with those that are there.

    Args:
        stream: the JPEG stream.
        pixels: what a decoder made of it, integers (H, W) or (H, W, 3).

    Raises:
        FilmError: part of the stream is missing or damaged.
    """
    tables: dict[int, np.ndarray] = {}
    components, precision, interval, scans = b"", 0, 0, 0
    planes = pixels if pixels.ndim == 3 else pixels[..., None]
    while True:
        for marker, start, end in segments(stream):
            content = stream[start + 4 : end]
            if marker == DHT:
                tables |= _code_lengths(content)
            elif marker == DRI:
                interval = int.from_bytes(content)
            elif marker == _SOF3:
                precision, components = content[0], content[6::3]
                if len(components) != planes.shape[2] or any(f != 0x11 for f in content[7::3]):
                    return  # subsampled, which no film is
            elif marker == SOS:
                behind = MARKER.search(stream, end)
                coded = stream[end : behind.start() if behind else len(stream)]
                count, shift, scans = content[0], content[-1] & 15, scans + 1
                needed = 0
                for name, table in struct.iter_unpack("BB", content[1 : 1 + 2 * count]):
                    if table >> 4 not in tables:
                        raise FilmError("damaged: its JPEG lacks a table")
                    plane = planes[..., components.index(name)]
                    counts = _count_differences(plane, precision, shift, content[-3], interval)
                    needed += int(counts @ (tables[table >> 4][_CATEGORY] + _CATEGORY % 16))
                _compare(needed, coded)
                stream = SOI + (stream[behind.start() :] if behind else b"")
                break
        else:
            break
    if not scans:
        raise FilmError("damaged: its JPEG has no scan")


def _compare(needed: int, coded: bytes) -> None:
    restarts = len(RESTART.findall(coded))
    there = len(coded) - coded.count(b"\xff\x00") - 2 * restarts
    # Each restart begins with a byte of its own.
    if not needed <= 8 * there <= needed + 8 * (restarts + 1 + _SLACK):
        raise FilmError(
            f"truncated or damaged: its JPEG has {there} bytes of pixels; expected {needed // 8}"
        )


def _code_lengths(content: bytes) -> dict[int, np.ndarray]:
    """Bits of the code of each category, by the number of their table (T.81 B.2.4.2)."""
    tables = {}
    while len(content) >= 17:
        counts, total = content[1:17], sum(content[1:17])
        lengths = np.zeros(17, np.int64)
        symbols = np.frombuffer(content[17 : 17 + total], np.uint8).clip(max=16)
        lengths[symbols] = np.repeat(np.arange(1, 17), [*counts])[: len(symbols)]
        tables[content[0] & 15] = lengths
        content = content[17 + total :]
    return tables


def _count_differences(
    plane: np.ndarray, precision: int, shift: int, predictor: int, interval: int
) -> np.ndarray:
    """How many pixels differ from their prediction by 0 to 65535, modulo 65536 (T.81 H.1.2)."""
    rows, columns = plane.shape
    counts = np.zeros(65536, np.int64)
    # Prediction starts anew at a restart, which is at the begin of a row (H.1.1).
    anew = interval // columns or rows
    for start in range(0, rows, _ROWS):
        block = plane[max(start - 1, 0) : start + _ROWS].astype(np.int32)
        block = (block & (1 << precision) - 1) >> shift
        left, above = np.zeros_like(block), np.zeros_like(block)
        left[:, 1:], above[1:] = block[:, :-1], block[:-1]
        corner = np.zeros_like(block)
        corner[1:, 1:] = block[:-1, :-1]
        predicted = (
            left,
            left,
            above,
            corner,
            left + above - corner,
            left + (above - corner >> 1),
            above + (left - corner >> 1),
            left + above >> 1,
        )[predictor & 7]
        predicted[:, 0] = above[:, 0]
        first = np.arange(max(start - 1, 0), max(start - 1, 0) + len(block)) % anew == 0
        predicted[first] = left[first]
        predicted[first, 0] = 1 << max(precision - shift - 1, 0)
        new = (block - predicted)[start > 0 :]
        counts += np.bincount((new & 0xFFFF).ravel(), minlength=65536)
    return counts
