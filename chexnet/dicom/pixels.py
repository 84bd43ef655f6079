"""The stored values of a film's first frame, out of its Pixel Data (PS3.5 8, A.4; PS3.3 C.7.6.3).

Whatever can be refused is refused before anything is decoded.
"""

import struct
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_fragments, get_frame
from pydicom.pixels import convert_color_space
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import UID, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

from chexnet.dicom.header import (
    REMEDIES,
    FilmError,
    PixelFormat,
    library_errors,
    no_decoder,
    read_value,
)
from chexnet.dicom.jpeg import check_jpeg
from chexnet.dicom.lossless import check_lossless
from chexnet.dicom.lut import read_table

ITEM = b"\xfe\xff\x00\xe0"  # PS3.5 A.4
_MOST_ITEMS = 100_000  # of compressed pixel data: its table of offsets and fragments
_SLACK = 2**20  # bytes that a compressed frame may have beyond twice its plain size
# JPEG, JPEG 2000, JP2: if the first item begins so, the table of offsets is missing.
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")
_GAP = bytes(256)  # OpenJPEG writes at most 12 zeros in a row, of a black picture too
# Which of several installed decoders reads a film. Pillow before the others, so that a film gives
# the same pixels with and without them. Never GDCM, which ends the process at some damaged streams.
_PLUGINS = ("pydicom", "pillow", "imagecodecs", "pylibjpeg")


def first_frame(ds: Dataset, form: PixelFormat, decoder: Decoder) -> bytes:
    """The bytes of the first frame as the file holds them; of native pixels all bytes.

    Raises:
        FilmError: no pixels, not stored as the transfer syntax says, or out of bounds.
    """
    pixels = read_value(ds, "PixelData", bytes) or b""
    if not pixels:
        raise FilmError("no pixel data: its Pixel Data is empty")
    compressed = pixels[:4] == ITEM
    plain = form.rows * form.columns * form.samples_per_pixel * form.bits_allocated // 8
    if not decoder.is_encapsulated:
        if compressed and len(pixels) not in (plain * form.number_of_frames + k for k in (0, 1)):
            raise FilmError(f"its pixels are compressed; expected {decoder.UID.name}")
        return pixels
    if not compressed:
        raise FilmError(f"its pixels are not compressed; expected {decoder.UID.name}")
    # Fewer bytes cannot hold as many items; counting takes a while.
    many = len(pixels) > 8 * _MOST_ITEMS and pixels.count(ITEM) > _MOST_ITEMS
    if many or int.from_bytes(pixels[4:8], "little") > 4 * _MOST_ITEMS:
        raise FilmError(f"compressed pixels in more than {_MOST_ITEMS} parts")
    with library_errors("truncated or damaged: its compressed pixels have no whole frame"):
        if form.number_of_frames == 1:  # every item after the table of offsets, which may be wrong
            offsets, *fragments = generate_fragments(pixels)
            fragments = [offsets, *fragments] if offsets.startswith(_STARTS) else fragments
            frame = b"".join(fragments)
        else:
            frame = get_frame(pixels, 0, number_of_frames=form.number_of_frames)
    if len(frame) > 2 * plain + _SLACK:
        raise FilmError(f"{len(frame)} bytes of compressed pixels for {plain} of plain ones")
    return frame


def decode(
    frame: bytes, ds: Dataset, form: PixelFormat, decoder: Decoder
) -> tuple[np.ndarray, PixelFormat, list[str]]:
    """Decodes a frame.

    Returns:
        Integers (H, W), or RGB uint8 (H, W, 3); how they are stored, where a JPEG stream knows
        better than the header; and what of the header is not followed, in plain words.

    Raises:
        FilmError: the frame is not whole, or no decoder is installed for it.
    """
    depth, plugin = form.bits_allocated, ""
    reason = f"truncated: {len(frame)} bytes do not fill {form.rows} x {form.columns} pixels"
    if decoder.is_encapsulated:
        if "JPEG" in decoder.UID.name:
            depth = _check_stream(frame, form, decoder.UID)
            form = _of_stream(form, depth)
        else:
            _check_rle(frame, form.rows * form.columns)
        plugin = _choose_plugin(decoder, depth)
        reason = f"truncated, damaged, or beyond its decoder ({plugin}): {decoder.UID.name}"
    options: dict[str, Any] = asdict(form) | {"number_of_frames": 1, "pixel_keyword": "PixelData"}
    del options["high_bit"]
    # All bits: pydicom would take the lowest ones, whatever High Bit says, and of JPEG 2000 all.
    options["bits_stored"] = depth
    with library_errors(reason):
        options["pixel_vr"] = ds["PixelData"].VR
        source = encapsulate([frame]) if decoder.is_encapsulated else frame
        stored, facts = decoder.as_array(
            source, index=0, raw=True, decoding_plugin=plugin, **options
        )
    if decoder.UID in (JPEGLossless, JPEGLosslessSV1):
        check_lossless(frame, stored)
    stored = _meaningful_bits(stored, form)
    remarks = []
    # Zeros are valid JPEG 2000: packets without a coefficient.
    if "JPEG 2000" in decoder.UID.name and _GAP in frame.rstrip(b"\0"):
        remarks.append(f"JPEG 2000 with {len(_GAP)} zeros in a row: parts may be missing")
    if form.photometric_interpretation == "PALETTE COLOR":
        stored, more = _apply_palette(stored, ds, form)
        return stored, form, remarks + more
    if form.samples_per_pixel > 1:
        stored = stored.astype(np.uint8)
        if facts["photometric_interpretation"] in ("YBR_FULL", "YBR_FULL_422"):
            with library_errors(reason):
                stored = convert_color_space(stored, "YBR_FULL", "RGB")
    return stored, form, remarks


def _check_stream(frame: bytes, form: PixelFormat, syntax: UID) -> int:
    """Checks a JPEG stream before it is decoded; returns the bits of its values."""
    try:
        depth = check_jpeg(frame, form.rows, form.columns)
    except FilmError as error:
        if syntax in REMEDIES:  # perhaps another decoder reads it
            raise FilmError(f"{error} (decoder: {REMEDIES[syntax]})") from None
        raise
    if not 1 < depth <= 16:
        raise FilmError(f"its JPEG has values of {depth} bits; expected 2 to 16")
    if form.samples_per_pixel > 1 and depth != 8:
        raise FilmError(f"color of {depth} bits; expected 8")
    return depth


def _of_stream(form: PixelFormat, depth: int) -> PixelFormat:
    """How the values of a JPEG stream are stored.

    A header that says 12 bits in 16 may hold a JPEG of 8, 12 or 16 bits: a stream of 16 bits is as
    the header says, unused bits included; one of fewer holds nothing but the values.
    """
    bits, high = form.bits_stored, form.high_bit
    if depth > form.bits_allocated:
        bits, high = depth, depth - 1
    elif depth <= high:
        bits = min(bits, depth)
        high = bits - 1
    allocated = 8 if depth <= 8 else 16
    return replace(form, bits_allocated=allocated, bits_stored=bits, high_bit=high)


def _choose_plugin(decoder: Decoder, depth: int) -> str:
    """The decoder to use, of those that pydicom found."""
    names = [name for name in _PLUGINS if name in decoder.available_plugins]
    if depth > 8 and decoder.UID in (JPEGExtended12Bit,):  # of which Pillow decodes 8 bits only
        names = [name for name in names if name != "pillow"]
    if not names:
        raise FilmError(no_decoder(decoder.UID))
    return names[0]


def _meaningful_bits(stored: np.ndarray, form: PixelFormat) -> np.ndarray:
    """The bits from High Bit down, Bits Stored of them; others may be an overlay (PS3.5 8.1.1)."""
    size, sign = stored.itemsize, form.pixel_representation
    above, unused = 8 * size - 1 - form.high_bit, 8 * size - form.bits_stored
    stored = stored.astype(f"{'ui'[sign]}{size}", copy=False)  # in the order of this machine
    return (stored << above) >> unused if unused else stored


def _apply_palette(
    stored: np.ndarray, ds: Dataset, form: PixelFormat
) -> tuple[np.ndarray, list[str]]:
    """Indexes to RGB, uint8 (H, W, 3), by the three tables of a palette (PS3.3 C.7.6.3.1.5)."""
    lowest, highest = form.value_range
    names = [f"{color}PaletteColorLookupTable" for color in ("Red", "Green", "Blue")]
    tables = [table for n in names if (table := read_table(ds, n, lowest, highest))]
    if len(tables) < 3:
        raise FilmError("no color palette, or a segmented one; expected three lookup tables")
    # Entries have 8 or 16 bits, whatever is declared: 8-bit ones are also stored one a word.
    deep = max(table.bits for table in tables) > 8
    indexes = np.arange(lowest, highest + 1)
    colors = np.stack([table.look_up(indexes) >> 8 * deep for table in tables], axis=-1)
    remarks = [] if deep else [f"palette of {r}" for r in tables[0].remarks]
    return colors.astype(np.uint8)[stored.astype(np.int32) - lowest], remarks


def _check_rle(frame: bytes, plane: int) -> None:
    """Refuses an RLE frame that unpacks to more than it should, without unpacking it (PS3.5 G)."""
    if len(frame) < 64:
        raise FilmError("truncated: its RLE frame has no header")
    count, *starts = struct.unpack("<16I", frame[:64])
    bounds = [*starts[: min(count, 15)], len(frame)]
    if bounds[0] < 64 or any(start > end for start, end in pairwise(bounds)):
        raise FilmError("damaged: its RLE segments are not where it says")
    for start, end in pairwise(bounds):
        unpacked = 0
        while start < end:
            run = frame[start]
            if run < 128:
                unpacked, start = unpacked + run + 1, start + run + 2
            elif run > 128:
                unpacked, start = unpacked + 257 - run, start + 2
            else:  # 128 says nothing
                start += 1
            if unpacked > 2 * plane:
                raise FilmError(f"its RLE unpacks to more than {2 * plane} bytes")
