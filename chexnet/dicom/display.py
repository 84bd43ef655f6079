"""From stored values to grey shades: the display pipeline of PS3.4 N.2, one function a step.

Values go through a table, not the picture through arithmetic: the steps are applied once to each of
the 256 or 65,536 values that a pixel can have, and the picture is looked up in the result.
"""

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from chexnet.dicom.header import FilmError, PixelFormat, library_errors, read_value


@np.errstate(all="ignore")
def apply_display_pipeline(
    stored: np.ndarray, ds: Dataset, form: PixelFormat
) -> tuple[np.ndarray, list[str]]:
    """The picture that a viewer would show.

    Args:
        stored: integers (H, W) of 8 or 16 bits, as the file holds them.
        ds: the header.
        form: how the pixels are stored.

    Returns:
        uint8 (H, W), 0 = black, and what was done to the values, in plain words; no words if the
        shades are the stored values.

    Raises:
        FilmError: a step that cannot be done as the header asks for it.
    """
    stored = np.ascontiguousarray(stored, stored.dtype.newbyteorder("="))
    # Signed values are looked up under the unsigned number of the same bits.
    bits = np.arange(2 ** (8 * stored.itemsize)).astype(f"u{stored.itemsize}")
    values, index = bits.view(stored.dtype).astype(np.int64), stored.view(bits.dtype)
    present = cv2.calcHist([index], [0], None, [len(bits)], [0, len(bits)])[:, 0] > 0
    padding = find_padding(values, ds, form)

    modality, steps = apply_modality_lut(values, ds)
    if found := apply_voi_lut(modality, ds):
        shades, step = found
        steps.append(step)
    else:
        lowest, highest = form.value_range
        span = (values >= lowest) & (values <= highest)
        # Few bits keep the meaning of their full range; of many bits only some are used.
        if wide := form.bits_stored > 8 or bool((present & ~span).any()):
            span = present & ~padding
        ends = modality[span] if span.any() else np.zeros(1)
        floor, ceiling = ends.min(), ends.max()
        shades = (modality - floor) / max(ceiling - floor, 1e-9) * 255
        if wide:
            steps.append(f"spread from its lowest to its highest value ({floor:g} to {ceiling:g})")
    if not np.isfinite(shades[present]).all():
        raise FilmError("its rescale or window leads to values that are not numbers")
    table = np.rint(np.clip(shades, 0, 255)).astype(np.uint8)

    if form.photometric_interpretation == "MONOCHROME1":  # PS3.3 C.7.6.3.1.2
        table = 255 - table
        steps.append("inverted (MONOCHROME1)")
    if table[present & padding].any():
        steps.append("padding made black")
    table[padding] = 0
    if np.array_equal(table[present], values[present]):
        return stored.astype(np.uint8), []
    return cv2.LUT(index, table), steps or [f"{form.bits_stored} bits stretched to 8"]


def find_padding(values: np.ndarray, ds: Dataset, form: PixelFormat) -> np.ndarray:
    """Which stored values mark pixels outside the film (PS3.3 C.7.5.1.1.2); bool (N,)."""
    first = read_value(ds, "PixelPaddingValue", int)
    if first is None:
        return np.zeros(values.shape, bool)
    last = read_value(ds, "PixelPaddingRangeLimit", int)
    # Written as unsigned for signed pixels, or the reverse, by some devices: same bits.
    lowest, highest = form.value_range
    turn = 1 << 16
    bounds = [
        value + (turn if value < lowest else -turn if value > highest else 0)
        for value in (first, first if last is None else last)
    ]
    return (values >= min(bounds)) & (values <= max(bounds))


def apply_modality_lut(values: np.ndarray, ds: Dataset) -> tuple[np.ndarray, list[str]]:
    """Stored values to the modality's (PS3.3 C.11.1): by a table, or slope and intercept.

    Returns:
        Integers or float64 (N,), and what was done, in words.
    """
    if item := read_value(ds, "ModalityLUTSequence", Dataset):
        return _look_up(values, item)[0], ["modality LUT applied"]
    slope = read_value(ds, "RescaleSlope", float)
    intercept = read_value(ds, "RescaleIntercept", float)
    if slope is None or intercept is None:
        return values, []
    if slope == 0:
        raise FilmError("rescale slope 0 leaves no picture")
    return values * slope + intercept, []


def apply_voi_lut(values: np.ndarray, ds: Dataset) -> tuple[np.ndarray, str] | None:
    """The modality's values to shades (PS3.3 C.11.2): by a table, or the first of its windows.

    Returns:
        float64 (N,), 0 = black, 255 = white, perhaps beyond them, and what was done, in words; None
        if the header has neither table nor window.
    """
    if item := read_value(ds, "VOILUTSequence", Dataset):
        entries, depth = _look_up(values, item)
        return entries / (2**depth - 1) * 255, "VOI LUT applied"
    centre, width = (read_value(ds, name, float) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None
    function = (read_value(ds, "VOILUTFunction", str) or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise FilmError("VOI LUT function: expected LINEAR, LINEAR_EXACT or SIGMOID")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise FilmError(f"window width {width:g}; expected at least 1 (above 0 if not LINEAR)")
    # As for a film of 8 unsigned bits, so that the result runs from 0 to 255.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 8, 0
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre, width, function
    return apply_windowing(values, window), f"window {centre:g}/{width:g} applied"


def _look_up(values: np.ndarray, item: Dataset) -> tuple[np.ndarray, int]:
    """Values through the table of a LUT sequence's item, and the bits of its entries (C.11.1.1).

    pydicom's ``apply_voi`` and ``apply_modality_lut`` round down, stop at a table with more entries
    than declared, at 8-bit VOI tables of more than 256, and at modality tables of 10 to 15 bits.
    """
    descriptor = read_value(item, "LUTDescriptor", object)
    if not isinstance(descriptor, list) or [type(number) for number in descriptor] != [int] * 3:
        raise FilmError("a lookup table without a descriptor of three integers")
    count, first, depth = descriptor
    count = count % 65536 or 65536  # PS3.3 C.11.1.1.1: 0 says 65,536
    data = read_value(item, "LUTData", object)
    with library_errors("damaged: LUTData cannot be read"):
        if isinstance(data, bytes):
            data = np.frombuffer(data, "<u2" if item.original_encoding[1] else ">u2")
        entries = np.atleast_1d(np.asarray([] if data is None else data, np.int64))
    if not 8 <= depth <= 16 or len(entries) < count:
        raise FilmError(f"a lookup table of {len(entries)} entries, {depth} bits; expected {count}")
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)], depth
