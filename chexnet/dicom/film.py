"""One DICOM film to 8-bit grey pixels.

Whatever can be refused is refused before anything is decoded, and with a reason that quotes nothing
of the header but numbers.
"""

import contextlib
import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.uid import UID

from chexnet.dicom.display import shown
from chexnet.dicom.header import MAX_SAMPLES, FilmError, public_facts, read_bytes, read_elements
from chexnet.dicom.jpeg import EOI, ITEM, JPEG_BASELINE, SOS, frame_size, grey_baseline

_MOST_ITEMS = 100_000  # frames and fragments of pixel data
_MOST_OFFSETS = 4 * _MOST_ITEMS  # bytes of a table of where the frames begin
_MOST_SCANS = 32  # of a JPEG; a progressive one in grey has six
_SLACK = 2**20  # bytes that a coded frame may have beyond twice its plain size
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_GREYS = ("MONOCHROME1", "MONOCHROME2")  # PS3.3 C.7.6.3.1.2
_PALETTE = [
    f"{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for part in ("Descriptor", "Data")
]
# All that is read of a header; what is not named here stays in the file.
_ELEMENTS = [
    *("ViewPosition", "PatientSex", "PatientAge", "Rows", "Columns", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData", "FloatPixelData"),
    *("DoubleFloatPixelData", *_PALETTE),
]
# pydicom's warnings and log quote values of the header. Both are switched off for the whole process
# while a file is read, so one thread reads at a time.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Film:
    """A film as everything after this module sees it.

    Attributes:
        pixels: uint8 (H, W), 0 = black = air, 255 = white.
        header: ``view`` (such as "PA"), ``sex`` ("M", "F", "O"), ``age`` in whole years, each None
            if not known; ``rows`` and ``columns`` in pixels.
        original: how it was stored: ``transfer_syntax`` (its name), ``photometric``, ``bits``
            (stored per sample), ``signed``, ``frames``, and ``steps``, what was done to the stored
            values in plain words, empty if nothing.
        jpg: the JPEG stream of the file itself where it holds exactly ``pixels``, else None.
    """

    pixels: np.ndarray
    header: dict[str, object]
    original: dict[str, object]
    jpg: bytes | None = None


def read_film(path: str | Path) -> Film:
    """Reads one DICOM film.

    Modality LUT or rescale, then VOI LUT or window (the first of several), then MONOCHROME1
    inverted. Without LUT and window, 8 bits or fewer keep the meaning of their full range, and more
    bits are spread from the lowest to the highest value in the film. Pixels marked as padding
    become black. Colour becomes grey (ITU-R BT.601), of several frames the first is taken, and
    ``original["steps"]`` says so.

    Args:
        path: a DICOM Part 10 file.

    Raises:
        FilmError: not a film, or not one that can be shown; the message names file and reason.
        OSError: the file cannot be opened.
    """
    try:
        return film_of(read_bytes(path))
    except FilmError as error:
        raise FilmError(f"{path}: {error}") from None


def film_of(data: bytes) -> Film:
    """Like ``read_film``, from the content of a file."""
    with _quietly():
        ds = _dataset(data)
        syntax = UID(ds.file_meta.TransferSyntaxUID)
        original = _checked(ds, syntax)
        frame = _first_frame(ds, syntax)
        stored = _decoded(ds, syntax)
        jpg = None
        if stored.ndim == 3:
            # cv2's weights add up to one exactly: a grey picture stored as colour stays as it is.
            pixels = cv2.cvtColor(np.ascontiguousarray(stored), cv2.COLOR_RGB2GRAY)
            steps = ["colour made grey"]
        else:
            pixels, steps = shown(ds, stored)
            if syntax == JPEG_BASELINE and not steps:
                jpg = grey_baseline(frame, *pixels.shape)
        if original["frames"] > 1:
            steps.insert(0, f"first of {original['frames']} frames")
        facts = {"view": ds.get("ViewPosition"), "sex": ds.get("PatientSex")}
        size = {"rows": pixels.shape[0], "columns": pixels.shape[1]}
        header = public_facts({**facts, "age": ds.get("PatientAge"), **size})
    return Film(pixels, header, original | {"steps": tuple(steps)}, jpg)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No word of pydicom's, and any error of its own turned into one that quotes nothing."""
    logger = logging.getLogger("pydicom")
    with _ONE_AT_A_TIME, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        except (FilmError, MemoryError):
            raise
        except Exception as error:
            # Whatever a damaged file leads a library into, it is the file's fault.
            kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
            raise FilmError(f"damaged: reading it stopped with {kind}") from None
        finally:
            logger.setLevel(level)


def _dataset(data: bytes) -> pydicom.Dataset:
    """The elements of ``_ELEMENTS``, those of the first frame's functional groups included."""
    ds = read_elements(data, _ELEMENTS)
    # PS3.3 C.7.6.16: enhanced files keep these steps for all frames or for each.
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (ds.get(groups) or [{}])[0].get(macro) or []:
                ds.update({element.tag: element for element in item})
                break
    return ds


def _checked(ds: pydicom.Dataset, syntax: UID) -> dict[str, object]:
    """How the film is stored, after all that can be refused without decoding has been refused."""
    if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:
        raise FilmError("floating-point pixels; 8 to 16 bits are read")
    if "PixelData" not in ds:
        raise FilmError("no pixel data")
    missing = [name for name in ("Rows", "Columns", "BitsAllocated") if ds.get(name) is None]
    if missing:
        raise FilmError(f"its header lacks {', '.join(missing)}")
    rows, columns, samples = int(ds.Rows), int(ds.Columns), int(ds.get("SamplesPerPixel", 1))
    photometric = str(ds.get("PhotometricInterpretation", "")).strip()
    allocated, frames = int(ds.BitsAllocated), int(ds.get("NumberOfFrames") or 1)
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise FilmError(f"no decoder for {syntax.name} is installed")
    bits, high = int(ds.get("BitsStored") or allocated), ds.get("HighBit")
    if rows < 1 or columns < 1 or rows * columns * samples > MAX_SAMPLES:
        raise FilmError(
            f"{rows} x {columns} pixels of {samples} values; 1 to {MAX_SAMPLES} values are read"
        )
    if allocated not in (8, 16) or not 1 < bits <= allocated:
        raise FilmError(f"{bits} bits in {allocated} per value; 2 to 16 in 8 or 16 are read")
    if high is not None and int(high) != bits - 1:
        raise FilmError(f"high bit {int(high)} for {bits} bits; {bits - 1} is read")
    if photometric not in _GREYS + _COLOURS:
        raise FilmError(f"photometric interpretation none of {', '.join(_GREYS + _COLOURS)}")
    if samples != (1 if photometric in (*_GREYS, "PALETTE COLOR") else 3):
        raise FilmError(f"{samples} values per pixel do not go with {photometric}")
    if photometric in _COLOURS and bits != 8:
        raise FilmError(f"colour of {bits} bits; 8 bits are read")
    if frames < 1:
        raise FilmError(f"{frames} frames; at least 1 is needed")
    ds.SamplesPerPixel, ds.BitsStored, ds.PhotometricInterpretation = samples, bits, photometric
    ds.NumberOfFrames, ds.PixelRepresentation = frames, int(ds.get("PixelRepresentation") or 0)
    if ds.PixelRepresentation not in (0, 1):
        raise FilmError(f"pixel representation {ds.PixelRepresentation}; 0 or 1 is read")
    return {
        "transfer_syntax": syntax.name,
        "photometric": photometric,
        "bits": bits,
        "signed": bool(ds.PixelRepresentation),
        "frames": frames,
    }


def _first_frame(ds: pydicom.Dataset, syntax: UID) -> bytes:
    """Leaves the first frame alone in ``ds``, once its size is sure; returns its coded bytes."""
    rows, columns = ds.Rows, ds.Columns
    # PS3.3 C.7.6.3.1.2: native 4:2:2 keeps two bytes per pixel of three.
    halved = ds.PhotometricInterpretation == "YBR_FULL_422" and not syntax.is_compressed
    size = rows * columns * (2 if halved else ds.SamplesPerPixel) * ds.BitsAllocated // 8
    if not syntax.is_encapsulated:
        if len(ds.PixelData) < size:
            raise FilmError(f"truncated: {len(ds.PixelData)} bytes of pixels, {size} needed")
        ds["PixelData"].value = ds.PixelData[: size + size % 2]
        ds.NumberOfFrames = 1
        return b""
    items, table = ds.PixelData.count(ITEM), int.from_bytes(ds.PixelData[4:8], "little")
    if items > _MOST_ITEMS or table > _MOST_OFFSETS:
        raise FilmError(f"compressed pixels in more than {_MOST_ITEMS} parts")
    try:
        offsets = ds.get("ExtendedOffsetTable"), ds.get("ExtendedOffsetTableLengths")
        frame = get_frame(
            ds.PixelData,
            0,
            number_of_frames=ds.NumberOfFrames,
            extended_offsets=offsets if all(offsets) else None,
        )
    except Exception:
        raise FilmError("truncated or damaged: its compressed pixels have no whole frame") from None
    if len(frame) > 2 * size + _SLACK:
        raise FilmError(f"{len(frame)} bytes of compressed pixels for {size} of plain ones")
    if "JPEG" in syntax.name:
        found = frame_size(frame)
        if found != (rows, columns):
            says = f"its JPEG is {found[0]} x {found[1]}" if found else "its JPEG is damaged"
            raise FilmError(f"{says}; {rows} x {columns} pixels expected")
        if frame[:2] == b"\xff\xd8":
            if EOI not in frame:
                raise FilmError("truncated: its JPEG has no end")
            if (scans := frame.count(bytes((0xFF, SOS)))) > _MOST_SCANS:
                raise FilmError(f"its JPEG has {scans} scans; at most {_MOST_SCANS} are read")
    else:
        _check_rle(frame, rows * columns)
    ds["PixelData"].value = encapsulate([frame])
    ds.NumberOfFrames = 1
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        ds.pop(keyword, None)
    return frame


def _check_rle(frame: bytes, plane: int) -> None:
    """Refuses an RLE frame that unpacks to more than it should, without unpacking it (PS3.5 G)."""
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


def _decoded(ds: pydicom.Dataset, syntax: UID) -> np.ndarray:
    """Stored values of the one frame in ``ds``: integers (H, W), or RGB uint8 (H, W, 3)."""
    decoder = get_decoder(syntax)
    try:
        stored, _ = decoder.as_array(ds, index=0)
    except (RuntimeError, ValueError, NotImplementedError):
        raise FilmError(
            f"truncated, damaged, or beyond the decoders installed: {syntax.name}, "
            f"{ds.BitsStored} bits"
        ) from None
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, ds)
        stored = stored if stored.dtype == np.uint8 else (stored >> 8).astype(np.uint8)
    return stored
