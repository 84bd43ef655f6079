"""From stored values to grey shades, as PS3.3 C.7.6.3 and C.11 say.

Values go through a table, not a picture through arithmetic: what the steps make of each of at most
65,536 values is worked out once, and the picture is looked up in the result.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pydicom
from pydicom.multival import MultiValue

from chexnet.dicom.header import FilmError

_BLOCK = 1 << 20  # values looked up at a time: NumPy makes eight bytes of each on the way


def shown(ds: pydicom.Dataset, stored: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The picture that a viewer would show.

    Args:
        ds: the header; Bits Stored, Pixel Representation and Photometric Interpretation are there.
        stored: integers (H, W) of at most 16 bits, as the file holds them.

    Returns:
        uint8 (H, W), 0 = black, and what was done to the values, in plain words; no words if the
        shades are the stored values.

    Raises:
        FilmError: a step that cannot be done as the header asks for it.
    """
    low, high = int(stored.min()), int(stored.max())
    steps: list[str] = []
    table = _shades(ds, stored, low, high, steps)
    pixels = np.empty(stored.shape, np.uint8)
    for rows, index in _blocks(stored, low):
        pixels[rows] = table[index]
    if np.array_equal(table, np.arange(low, high + 1)):
        return pixels, []
    return pixels, steps or [f"{ds.BitsStored} bits stretched to 8"]


def _blocks(stored: np.ndarray, low: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows at a time: which, and their values counted from ``low``."""
    step = max(1, _BLOCK // stored.shape[1])
    for top in range(0, stored.shape[0], step):
        rows = slice(top, top + step)
        yield rows, stored[rows].astype(np.intp) - low


def _shades(
    ds: pydicom.Dataset, stored: np.ndarray, low: int, high: int, steps: list[str]
) -> np.ndarray:
    """The grey shade of every stored value.

    Args:
        ds: the header.
        stored: integers (H, W), from ``low`` to ``high``.
        low: the lowest stored value.
        high: the highest.
        steps: plain words for what is done are added here.

    Returns:
        uint8 (high - low + 1,), for ``low``, ``low + 1``, ... in order.
    """
    stored_values = np.arange(low, high + 1)
    padding = _padding(ds, stored_values)
    # What the film can hold if it keeps to its bits, or where they are many, what it does hold.
    lowest, highest = _range_of_bits(ds)
    span = np.arange(lowest, highest + 1)
    wide = ds.BitsStored > 8 or low < lowest or high > highest
    if wide:
        seen = np.zeros(len(stored_values), bool)
        for _, index in _blocks(stored, low):
            seen[index] = True
        seen &= ~padding
        span = stored_values[seen]
    values, span = (_modality(ds, part) for part in (stored_values, span))
    if ds.get("ModalityLUTSequence"):
        steps.append("modality LUT applied")
    if ds.get("VOILUTSequence"):
        table, depth = _lut(ds, "VOILUTSequence")
        shades = table(values) / (2**depth - 1)
        steps.append("VOI LUT applied")
    elif ds.get("WindowCenter") is not None and ds.get("WindowWidth") is not None:
        centre, width = (_number(ds, name) for name in ("WindowCenter", "WindowWidth"))
        shades = _windowed(values, centre, width, str(ds.get("VOILUTFunction") or "LINEAR"))
        steps.append(f"window {centre:g}/{width:g} applied")
    else:
        floor, ceiling = (span.min(), span.max()) if len(span) else (0, 0)
        shades = (values - floor) / max(ceiling - floor, 1e-9)
        if wide:
            steps.append(f"spread from its lowest to its highest value ({floor:g} to {ceiling:g})")
    if not np.isfinite(shades).all():
        raise FilmError("its rescale or window leads to values that are not numbers")
    shades = np.rint(np.clip(shades, 0, 1) * 255).astype(np.uint8)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shades = 255 - shades
        steps.append("inverted (MONOCHROME1)")
    if shades[padding].any():
        shades[padding] = 0
        steps.append("padding made black")
    return shades


def _range_of_bits(ds: pydicom.Dataset) -> tuple[int, int]:
    """The lowest and highest value that Bits Stored and Pixel Representation allow."""
    if ds.PixelRepresentation:
        return -(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1
    return 0, 2**ds.BitsStored - 1


def _padding(ds: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """Which stored values mark pixels outside the film (PS3.3 C.7.5.1.1.2); bool (N,)."""
    first = ds.get("PixelPaddingValue")
    if first is None:
        return np.zeros(values.shape, bool)
    last = ds.get("PixelPaddingRangeLimit")
    last = first if last is None else last
    # Written as unsigned for signed pixels, or the reverse, by some devices: same bits.
    lowest, highest = _range_of_bits(ds)
    turn = 1 << 16
    bounds = [
        int(value) + (turn if value < lowest else -turn if value > highest else 0)
        for value in (first, last)
    ]
    return (values >= min(bounds)) & (values <= max(bounds))


def _modality(ds: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """Stored values to the modality's (PS3.3 C.11.1); float64 or integers, same shape."""
    if ds.get("ModalityLUTSequence"):
        return _lut(ds, "ModalityLUTSequence")[0](values)
    if ds.get("RescaleSlope") is None or ds.get("RescaleIntercept") is None:
        return values
    slope = _number(ds, "RescaleSlope")
    if slope == 0:
        raise FilmError("rescale slope 0 leaves no picture")
    return values * slope + _number(ds, "RescaleIntercept")


def _lut(ds: pydicom.Dataset, sequence: str) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The first table of a LUT sequence as a function, and the bits of its output (C.11.1.1.1)."""
    item = ds[sequence].value[0]
    if any(item.get(name) is None for name in ("LUTDescriptor", "LUTData")):
        raise FilmError("a lookup table without descriptor or data")
    count, first, depth = (int(number) for number in item.LUTDescriptor)
    count = count or 65536
    entries = item.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, f"{'<' if ds.original_encoding[1] else '>'}u2")
    entries = np.atleast_1d(np.asarray(entries, np.int64))
    if not 8 <= depth <= 16 or len(entries) < count:
        raise FilmError(f"a lookup table of {len(entries)} entries, {depth} bits; {count} expected")
    return lambda values: entries[
        np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    ], depth


def _number(ds: pydicom.Dataset, keyword: str) -> float:
    """The first value of a decimal element, finite.

    Raises:
        FilmError: it is no number.
    """
    value = ds[keyword].value
    try:
        number = float(value[0] if isinstance(value, MultiValue) else value)
    except (TypeError, ValueError, IndexError):
        number = np.nan
    if not np.isfinite(number):
        raise FilmError(f"{keyword} is not a number")
    return number


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Shades from 0 to 1, beyond them outside the window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    function = function.strip().upper()
    if width < 1 if function == "LINEAR" else width <= 0:
        raise FilmError(f"window width {width:g}; at least 1 is needed (above 0 if not LINEAR)")
    if function == "LINEAR":
        if width == 1:
            return (values > centre - 0.5).astype(float)
        return (values - (centre - 0.5)) / (width - 1) + 0.5
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    raise FilmError("VOI LUT function none of LINEAR, LINEAR_EXACT, SIGMOID")
