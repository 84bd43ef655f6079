"""One DICOM film to 8-bit grey pixels, or to the JPG that the file already holds.

Whatever can be refused is refused before anything is decoded, and with a reason that quotes nothing
of the header but numbers.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments
from pydicom.filereader import data_element_generator
from pydicom.tag import Tag
from pydicom.uid import JPEGBaseline8Bit

from chexnet.dicom.display import apply_display_pipeline, find_flat
from chexnet.dicom.header import (
    DISPLAY,
    FUNCTIONAL_GROUPS,
    MAX_SAMPLES,
    MAX_SIDE,
    FilmError,
    bounded,
    find_contradictions,
    has_prefix,
    is_behind_pixels,
    library_errors,
    public_facts,
    quiet_pydicom,
    read_bytes,
    read_elements,
    read_pixel_format,
    read_value,
)
from chexnet.dicom.jpeg import check_complete, grey_baseline, looks_complete
from chexnet.dicom.picture import color_to_gray, looks_like_picture, read_picture
from chexnet.dicom.pixels import decode, first_frame

_MOST_META = 1000  # bytes of the file before the data set; those of RSNA have 346
# Bits of a JPEG for a block of 8 x 8 pixels. One shade takes 6 or less, RSNA's films 33 to 100.
_FEWEST_BITS = 16
_START_OF_SCAN = b"\xff\xda"  # ITU-T T.81 table B.1; it does not occur in coded data
_PIXEL_DATA = Tag("PixelData")
# What a film says whose JPG can be copied, if nothing of ``_MAY_CHANGE`` is in its header.
_PLAIN = {
    Tag("TransferSyntaxUID"): ("UI", JPEGBaseline8Bit.encode()),
    Tag("SamplesPerPixel"): ("US", b"\x01\x00"),
    Tag("PhotometricInterpretation"): ("CS", b"MONOCHROME2 "),
    Tag("BitsAllocated"): ("US", b"\x08\x00"),
    Tag("BitsStored"): ("US", b"\x08\x00"),
    Tag("HighBit"): ("US", b"\x07\x00"),
    Tag("PixelRepresentation"): ("US", b"\x00\x00"),
}
_MAY_CHANGE = DISPLAY | {Tag(name) for name in ("NumberOfFrames", *FUNCTIONAL_GROUPS)}


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

    Modality LUT or rescale, then VOI LUT or window (the first of several that can be applied), then
    MONOCHROME1 inverted. Without LUT and window, 8 bits or fewer keep the meaning of their full
    range, and more bits are spread from the lowest to the highest value in the film. Pixels marked
    as padding become black. Color becomes gray (ITU-R BT.601), of several frames the first is
    taken, and ``original["steps"]`` says so. Of PNG and JPG, 16 bits are spread alike, and
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
        frame = first_frame(ds, form, decoder)
        remarks = [] if has_prefix(data) else [f"no DICOM preamble; read as {syntax.name}"]
        remarks += find_contradictions(ds, form.photometric_interpretation, form.high_bit)
        stored, form, more = decode(frame, ds, form, decoder)
        remarks += more
        jpg = None
        if stored.ndim == 3:
            pixels, steps, more = color_to_gray(stored)
            remarks += more
        else:
            pixels, steps, more = apply_display_pipeline(stored, ds, form)
            remarks += more
            # Of fewer bits, those beyond them were left out.
            if syntax == JPEGBaseline8Bit and form.bits_stored == 8 and not steps:
                jpg = grey_baseline(frame, form.rows, form.columns)
        if flat := find_flat(pixels):
            remarks.append(flat)
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
        facts = public_facts(ds, form.rows, form.columns)
        return Film(pixels, facts, original, jpg, tuple(remarks))


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
    flat = find_flat(picture.pixels)
    remarks = [*picture.remarks, flat] if flat else picture.remarks
    return Film(picture.pixels, header, original, jpg, tuple(remarks))


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
    if not has_prefix(data) or JPEGBaseline8Bit.encode() not in data[:_MOST_META]:
        return None
    elements, frame = {}, b""
    file = bounded(data)
    file.seek(132)
    with quiet_pydicom():
        with contextlib.suppress(FilmError), library_errors("not a film of this kind"):
            # With JPEG, meta information and data set are both explicit VR, little endian.
            elements = {
                element.tag: element
                for element in data_element_generator(file, False, True, is_behind_pixels)
            }
            # Exactly two items: the table of offsets and one fragment.
            _, frame = generate_fragments(elements[_PIXEL_DATA].value or b"")
        found = {tag: (elements[tag].VR, elements[tag].value) for tag in _PLAIN if tag in elements}
        if found != _PLAIN or not _MAY_CHANGE.isdisjoint(elements):
            return None
        ds = Dataset(elements)
        rows, columns = (read_value(ds, name, int) or 0 for name in ("Rows", "Columns"))
        if not 0 < rows * columns <= MAX_SAMPLES or max(rows, columns) > MAX_SIDE:
            return None
        jpg = grey_baseline(frame, rows, columns)
        # A film that a remark is due to is decoded.
        if jpg is None or _is_sparse(jpg, rows, columns):
            return None
        if find_contradictions(ds, "MONOCHROME2", high_bit=7):
            return None
        facts = public_facts(ds, rows, columns)
    if not looks_complete(jpg, rows, columns):
        check_complete(jpg)
    return facts, jpg


def _is_sparse(jpg: bytes, rows: int, columns: int) -> bool:
    """Whether a JPG has so few bits that its picture may be one of one shade."""
    coded = len(jpg) - jpg.rfind(_START_OF_SCAN)
    return 8 * coded < _FEWEST_BITS * (rows * columns / 64)
