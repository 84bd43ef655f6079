"""One DICOM film to 8-bit grey pixels, or to the JPG that the file already holds.

Whatever can be refused is refused before anything is decoded, and with a reason that quotes nothing
of the header but numbers.
"""

import contextlib
import struct
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_fragments, get_frame
from pydicom.filereader import data_element_generator
from pydicom.pixels import apply_color_lut
from pydicom.pixels.decoders.base import Decoder
from pydicom.tag import Tag
from pydicom.uid import JPEGBaseline8Bit

from chexnet.dicom.display import apply_display_pipeline
from chexnet.dicom.header import (
    DISPLAY,
    FUNCTIONAL_GROUPS,
    MAX_SAMPLES,
    MAX_SIDE,
    FilmError,
    PixelFormat,
    bounded,
    library_errors,
    public_facts,
    quiet_pydicom,
    read_bytes,
    read_elements,
    read_pixel_format,
    read_value,
)
from chexnet.dicom.jpeg import check_complete, check_jpeg, grey_baseline, looks_complete
from chexnet.dicom.picture import color_to_gray, looks_like_picture, read_picture

_ITEM = b"\xfe\xff\x00\xe0"  # PS3.5 A.4
_MOST_ITEMS = 100_000  # of compressed pixel data: its table of offsets and fragments
_SLACK = 2**20  # bytes that a compressed frame may have beyond twice its plain size
_MOST_META = 1000  # bytes of the file before the data set; those of RSNA have 346
_PIXEL_DATA = Tag("PixelData")
# What a film says whose JPG can be copied, if nothing of ``_MAY_CHANGE`` is in its header.
_PLAIN = {
    Tag("TransferSyntaxUID"): JPEGBaseline8Bit.encode(),
    Tag("SamplesPerPixel"): b"\x01\x00",
    Tag("PhotometricInterpretation"): b"MONOCHROME2 ",
    Tag("BitsAllocated"): b"\x08\x00",
    Tag("BitsStored"): b"\x08\x00",
    Tag("HighBit"): b"\x07\x00",
    Tag("PixelRepresentation"): b"\x00\x00",
}
_MAY_CHANGE = DISPLAY | {Tag(name) for name in ("NumberOfFrames", *FUNCTIONAL_GROUPS)}
_PALETTE = [
    f"{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for part in ("Descriptor", "Data")
]


@dataclass(frozen=True)
class Film:
    """A film (a chest radiograph) as everything after this module sees it.

    Attributes:
        pixels: uint8 (H, W), 0 = black = air, 255 = white.
        header: ``view`` (such as "PA"), ``sex`` ("M", "F", "O"), ``age`` in whole years, each None
            if not known; ``rows`` and ``columns`` in pixels.
        original: how it was stored: ``transfer_syntax`` (its name), ``photometric``, ``bits``
            (stored per sample), ``signed``, ``frames``, and ``steps``, what was done to the stored
            values in plain words, empty if nothing.
        jpg: the JPEG stream of the file itself where it holds exactly ``pixels``, else None.
        remarks: why the picture may not be what its maker meant, in plain words: it has one shade,
            or nearly; the header contradicts itself, or holds what cannot be applied. Mostly empty.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.dicom import read_film
        >>> film = read_film(min(Path("data/phantom/study/stage_2_train_images").iterdir()))
        >>> film.original["transfer_syntax"], film.original["bits"], film.original["steps"]
        ('JPEG Baseline (Process 1)', 8, ())
    """

    pixels: np.ndarray
    header: dict[str, object]
    original: dict[str, object]
    jpg: bytes | None = None
    remarks: tuple[str, ...] = ()


def read_film(path: str | Path) -> Film:
    """Reads one film.

    Modality LUT or rescale, then VOI LUT or window (the first of several), then MONOCHROME1
    inverted. Without LUT and window, 8 bits or fewer keep the meaning of their full range, and more
    bits are spread from the lowest to the highest value in the film. Pixels marked as padding
    become black. Color becomes gray (ITU-R BT.601), of several frames the first is taken, and
    ``original["steps"]`` says so. Of PNG and JPG, 16 bits are spread in the same way, and
    transparent pixels become black.

    Args:
        path: a DICOM, PNG or JPG file.

    Raises:
        FilmError: not a film, or not one that can be shown; the message names file and reason.
        OSError: the file cannot be opened.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.dicom import read_film
        >>> film = read_film(min(Path("data/phantom/study/stage_2_train_images").iterdir()))
        >>> film.pixels.shape, film.pixels.dtype, film.header["view"] in ("AP", "PA")
        ((256, 256), dtype('uint8'), True)
    """
    try:
        return film_of(read_bytes(path))
    except FilmError as error:
        raise FilmError(f"{path}: {error}") from None


def film_of(data: bytes) -> Film:
    """Like ``read_film``, from the content of a file."""
    if looks_like_picture(data):
        return _film_of_picture(data)
    with quiet_pydicom():
        ds, decoder = read_elements(data)
        syntax, form = decoder.UID, read_pixel_format(ds)
        frame = _first_frame(ds, form, decoder)
        stored = _decode(frame, ds, form, decoder)
        jpg = None
        remarks: list[str] = []
        if stored.ndim == 3:
            pixels, steps, remarks = color_to_gray(stored)
        else:
            pixels, steps = apply_display_pipeline(stored, ds, form)
            if syntax == JPEGBaseline8Bit and not steps:
                jpg = grey_baseline(frame, form.rows, form.columns)
        if form.number_of_frames > 1:
            steps.insert(0, f"first of {form.number_of_frames} frames")
        original = {
            "transfer_syntax": syntax.name,
            "photometric": form.photometric_interpretation,
            "bits": form.bits_stored,
            "signed": bool(form.pixel_representation),
            "frames": form.number_of_frames,
            "steps": tuple(steps),
        }
        return Film(
            pixels, public_facts(ds, form.rows, form.columns), original, jpg, tuple(remarks)
        )


def _film_of_picture(data: bytes) -> Film:
    """A film from a PNG or JPG file."""
    picture = read_picture(data)
    rows, columns = picture.pixels.shape
    kind, colors, bits = picture.stored
    header = {"view": None, "sex": None, "age": None, "rows": rows, "columns": columns}
    original = {
        "transfer_syntax": kind,
        "photometric": colors,
        "bits": bits,
        "signed": False,
        "frames": 1,
        "steps": tuple(picture.steps),
    }
    jpg = grey_baseline(data, rows, columns)
    return Film(picture.pixels, header, original, jpg, tuple(picture.remarks))


def stored_jpeg(data: bytes) -> tuple[dict[str, object], bytes] | None:
    """The JPG inside the file of a film, where its pixels need not be decoded to know it.

    Most values are compared as they are in the file. Were all converted and checked as in
    ``film_of``, a film of RSNA would take 0.45 ms, a tenth of decoding and encoding it.

    Args:
        data: the whole DICOM file.

    Returns:
        ``Film.header`` and ``Film.jpg``; or None, which says only that ``film_of`` must decide.

    Raises:
        FilmError: a fact of the header is damaged, or the JPG cannot be decoded to its end.
    """
    if data[128:132] != b"DICM" or JPEGBaseline8Bit.encode() not in data[:_MOST_META]:
        return None
    elements, frame = {}, b""
    file = bounded(data)
    file.seek(132)
    with quiet_pydicom():
        with contextlib.suppress(FilmError), library_errors("not a film of this kind"):
            # With JPEG, meta information and data set are both explicit VR, little endian.
            elements = {
                element.tag: element for element in data_element_generator(file, False, True)
            }
            # Exactly two items: the table of offsets and one fragment.
            _, frame = generate_fragments(elements[_PIXEL_DATA].value or b"")
        plain = all(tag in elements and elements[tag].value == _PLAIN[tag] for tag in _PLAIN)
        if not plain or not _MAY_CHANGE.isdisjoint(elements):
            return None
        ds = Dataset(elements)
        rows, columns = (read_value(ds, name, int) or 0 for name in ("Rows", "Columns"))
        if not 0 < rows * columns <= MAX_SAMPLES or max(rows, columns) > MAX_SIDE:
            return None
        facts, jpg = public_facts(ds, rows, columns), grey_baseline(frame, rows, columns)
    if jpg is None:
        return None
    if not looks_complete(jpg, rows, columns):
        check_complete(jpg)
    return facts, jpg


def _first_frame(ds: Dataset, form: PixelFormat, decoder: Decoder) -> bytes:
    """The bytes of the first frame as the file holds them; of native pixels all bytes."""
    pixels = read_value(ds, "PixelData", bytes) or b""
    if not decoder.is_encapsulated:
        return pixels
    # Fewer bytes cannot hold as many items; counting takes a while.
    many = len(pixels) > 8 * _MOST_ITEMS and pixels.count(_ITEM) > _MOST_ITEMS
    if many or int.from_bytes(pixels[4:8], "little") > 4 * _MOST_ITEMS:
        raise FilmError(f"compressed pixels in more than {_MOST_ITEMS} parts")
    with library_errors("truncated or damaged: its compressed pixels have no whole frame"):
        if form.number_of_frames == 1:  # every item after the table of offsets, which may be wrong
            _, *fragments = generate_fragments(pixels)
            frame = b"".join(fragments)
        else:
            frame = get_frame(pixels, 0, number_of_frames=form.number_of_frames)
    plain = form.rows * form.columns * form.samples_per_pixel * form.bits_allocated // 8
    if len(frame) > 2 * plain + _SLACK:
        raise FilmError(f"{len(frame)} bytes of compressed pixels for {plain} of plain ones")
    return frame


def _decode(frame: bytes, ds: Dataset, form: PixelFormat, decoder: Decoder) -> np.ndarray:
    """Stored values of a frame: integers (H, W), or RGB uint8 (H, W, 3)."""
    reason = f"truncated: {len(frame)} bytes do not fill {form.rows} x {form.columns} pixels"
    if decoder.is_encapsulated:
        if "JPEG" in decoder.UID.name:
            check_jpeg(frame, form.rows, form.columns)
        else:
            _check_rle(frame, form.rows * form.columns)
        reason = f"truncated, damaged, or beyond the decoders installed: {decoder.UID.name}"
    options: dict[str, Any] = asdict(form) | {"number_of_frames": 1, "pixel_keyword": "PixelData"}
    with library_errors(reason):
        options["pixel_vr"] = ds["PixelData"].VR
        source = encapsulate([frame]) if decoder.is_encapsulated else frame
        stored, _ = decoder.as_array(source, index=0, **options)
    if form.photometric_interpretation == "PALETTE COLOR":
        palette = {keyword: read_value(ds, keyword, object) for keyword in _PALETTE}
        with library_errors("damaged: its colour palette cannot be applied"):
            tables = Dataset()
            for keyword, value in palette.items():
                setattr(tables, keyword, value)
            stored = apply_color_lut(stored, tables)
        stored = stored if stored.dtype == np.uint8 else (stored >> 8).astype(np.uint8)
    return stored


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
