"""From stored values to gray shades: the display pipeline of PS3.4 N.2, one function a step.

Values go through a table, not the picture through arithmetic: the steps are applied once to each of
the 256 or 65,536 values that a pixel can have, and the picture is looked up in the result.
"""

import math

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from chexnet.dicom.header import (
    MAX_ITEMS,
    FilmError,
    PixelFormat,
    read_items,
    read_text,
    read_value,
)
from chexnet.dicom.lut import LookupTable, read_table

# X-ray angiography, single and biplane, and radiofluoroscopy: their modality LUT leads back to the
# intensity of the beam and is not for display (PS3.3 C.8.7.1.1.2).
_XA = frozenset(f"1.2.840.10008.5.1.4.1.1.12.{kind}" for kind in (1, 2, 3))
_XA_MODALITIES = ("XA", "RF", "XRF")
_FEW = 0.01  # of the pixels, that do not make a picture
_NARROW = 16  # shades; a film of RSNA has more than 100 between its darkest and its brightest 0.5 %


@np.errstate(all="ignore")
def apply_display_pipeline(
    stored: np.ndarray, ds: Dataset, form: PixelFormat
) -> tuple[np.ndarray, list[str], list[str]]:
    """The picture that a viewer would show.

    Args:
        stored: integers (H, W) of 8 or 16 bits, in the order of this machine.
        ds: the header.
        form: how the pixels are stored.

    Returns:
        uint8 (H, W), 0 = black; what was done to the values, in plain words, no words if the
        shades are the stored values; and what of the header was not used or is contradictory.

    Raises:
        FilmError: a step that cannot be done as the header asks for it.
    """
    stored = np.ascontiguousarray(stored)
    # Signed values are looked up under the unsigned number of the same bits.
    bits = np.arange(2 ** (8 * stored.itemsize)).astype(f"u{stored.itemsize}")
    index = stored.view(bits.dtype)
    # Stored values have no bits beyond Bits Stored, so the clipped ones are never looked up.
    values = bits.view(stored.dtype).astype(np.int64).clip(*form.value_range)
    present = cv2.calcHist([index], [0], None, [len(bits)], [0, len(bits)])[:, 0] > 0
    padding = find_padding(values, ds, form)

    modality, steps, remarks = apply_modality_lut(values, ds)
    found, more = apply_voi_lut(modality, ds)
    remarks += more
    if found:
        shades, step = found
        steps.append(step)
    else:
        # Few bits keep the meaning of their full range; of many bits only some are used.
        wide = form.bits_stored > 8
        span = present & ~padding if wide else np.ones_like(present)
        ends = modality[span] if span.any() else np.zeros(1)
        floor, ceiling = ends.min(), ends.max()
        shades = (modality - floor) / max(ceiling - floor, 1e-9) * 255
        if wide:
            steps.append(f"spread from its lowest to its highest value ({floor:g} to {ceiling:g})")
    if not np.isfinite(shades[present]).all():
        raise FilmError("its rescale leads to values that are not numbers")
    table = np.rint(np.clip(shades, 0, 255)).astype(np.uint8)

    if form.photometric_interpretation == "MONOCHROME1":  # PS3.3 C.7.6.3.1.2
        table = 255 - table
        steps.append("inverted (MONOCHROME1)")
    if table[present & padding].any():
        steps.append("padding made black")
    table[padding] = 0
    if np.array_equal(table[present], values[present]):
        return stored.astype(np.uint8), [], remarks
    return cv2.LUT(index, table), steps or [f"{form.bits_stored} bits stretched to 8"], remarks


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


def apply_modality_lut(values: np.ndarray, ds: Dataset) -> tuple[np.ndarray, list[str], list[str]]:
    """Stored values to the modality's (PS3.3 C.11.1): by a table, or slope and intercept.

    Returns:
        Integers or float64 (N,); what was done, and what was not used, in words.
    """
    table, remarks = _find_table(values, ds, "ModalityLUTSequence", "modality LUT")
    if table and not _leads_back_to_intensity(ds):
        return table.look_up(values), ["modality LUT applied"], remarks
    slope = read_value(ds, "RescaleSlope", float)
    intercept = read_value(ds, "RescaleIntercept", float)
    if slope is None or intercept is None:
        return values, [], remarks
    if slope == 0:
        raise FilmError("rescale slope 0 leaves no picture")
    return values * slope + intercept, [], remarks


def _leads_back_to_intensity(ds: Dataset) -> bool:
    """Whether a modality LUT undoes what the device did for display.

    dcmtk decides by the SOP class alone; films that were sent on as secondary captures keep their
    modality and say how their values relate to the intensity.
    """
    sop_class, modality, relation = (
        read_text(ds, keyword)
        for keyword in ("SOPClassUID", "Modality", "PixelIntensityRelationship")
    )
    return sop_class in _XA or (modality in _XA_MODALITIES and relation in ("LOG", "DISP"))


def apply_voi_lut(
    values: np.ndarray, ds: Dataset
) -> tuple[tuple[np.ndarray, str] | None, list[str]]:
    """The modality's values to shades (PS3.3 C.11.2): by a table, or the first window that can be.

    Returns:
        Shades, float64 (N,), 0 = black, 255 = white, perhaps beyond them, and what was done, in
        words; None in their place if the header has neither table nor window. And what was not
        used, in words.
    """
    table, remarks = _find_table(values, ds, "VOILUTSequence", "VOI LUT")
    if table:
        return (table.look_up(values) / (2**table.bits - 1) * 255, "VOI LUT applied"), remarks
    try:
        centers, widths = (_numbers(ds, name) for name in ("WindowCenter", "WindowWidth"))
    except FilmError as error:
        return None, [*remarks, f"read without a window ({error})"]
    function = (read_value(ds, "VOILUTFunction", str) or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise FilmError("VOI LUT function: expected LINEAR, LINEAR_EXACT or SIGMOID")
    # As for a film of 8 unsigned bits, so that the result runs from 0 to 255.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored, window.PixelRepresentation = 8, 0
    for center, width in zip(centers, widths, strict=False):
        # Below 1, LINEAR has no meaning (PS3.3 C.11.2.1.2.1). Where a small slope makes all values
        # small, such a width still holds several of them.
        below_one = function == "LINEAR" and values.dtype.kind == "f" and width < 1
        exact = below_one and width >= abs(values[1] - values[0])
        chosen = "LINEAR_EXACT" if exact else function
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, width, chosen
        words = f"window {center:g}/{width:g}"
        if width > 0 and (chosen != "LINEAR" or width >= 1):
            shades = apply_windowing(values, window)
            if np.isfinite(shades).all():
                return (shades, f"{words} applied"), remarks
        remarks.append(f"{words} cannot be applied; read without it")
    return None, remarks


def _numbers(ds: Dataset, keyword: str) -> list[float]:
    """The numbers of a header's element; NaN for one that is missing, text or infinite."""
    numbers = read_value(ds, keyword, list) or []
    return [
        float(number) if isinstance(number, int | float) and math.isfinite(number) else math.nan
        for number in numbers[:MAX_ITEMS]
    ]


def _find_table(
    values: np.ndarray, ds: Dataset, keyword: str, name: str
) -> tuple[LookupTable | None, list[str]]:
    """The first table of a sequence, if there is any, and remarks on it and on empty items."""
    remarks: list[str] = []
    for item in read_items(ds, keyword):
        if table := read_table(item, "LUT", values.min(), values.max()):
            return table, remarks + [f"{name} of {words}" for words in table.remarks]
        remarks.append(f"{name} without a table; read without it")
    return None, remarks


def find_flat(pixels: np.ndarray) -> str | None:
    """Says if a picture has one shade, or nearly; padding and burnt-in text are not counted.

    Args:
        pixels: uint8 (H, W).

    Returns:
        None if it is a picture.
    """
    counts = cv2.calcHist([pixels], [0], None, [256], [0, 256])[:, 0]
    if counts.max() == pixels.size:
        return f"one shade: every pixel is {int(counts.argmax())}"
    inner = counts[1:255]
    if inner.sum() < _FEW * pixels.size:
        return f"{1 - inner.sum() / pixels.size:.1%} of its pixels are black or white"
    share = inner.cumsum() / inner.sum()
    low, high = (int(np.searchsorted(share, at)) + 1 for at in (_FEW / 2, 1 - _FEW / 2))
    if high - low < _NARROW:
        return f"nearly one shade: {1 - _FEW:.0%} of its pixels are from {low} to {high}"
    return None
