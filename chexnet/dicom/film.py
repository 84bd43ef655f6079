"""One DICOM film to 8-bit gray pixels, or to the JPG that the file already holds.

Whatever can be refused is refused before anything is decoded, and with a reason that quotes nothing
of the header but numbers.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.tag import Tag
from pydicom.uid import JPEGBaseline8Bit
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from chexnet.dicom.display import apply_display_pipeline, find_flat
from chexnet.dicom.header import (
    DISPLAY,
    FACTS,
    FOR_PROCESSING,
    FUNCTIONAL_GROUPS,
    HEAD,
    MAX_SAMPLES,
    MAX_SIDE,
    PREFIX_END,
    SIDES,
    FilmError,
    find_contradictions,
    has_prefix,
    public_facts,
    quiet_pydicom,
    read_bytes,
    read_elements,
    read_pixel_format,
    read_text,
)
from chexnet.dicom.jpeg import check_complete, grey_baseline, looks_complete
from chexnet.dicom.picture import color_to_gray, looks_like_picture, read_picture
from chexnet.dicom.pixels import ITEM, decode, first_frame

# Bits of a JPEG for a block of 8 x 8 pixels. One shade takes 6 or less, RSNA's films 33 to 100.
_FEWEST_BITS = 16
_START_OF_SCAN = b"\xff\xda"  # ITU-T T.81 table B.1; it does not occur in coded data
_ELEMENT = struct.Struct("<HH2sH")  # PS3.5 7.1.2, and the VRs whose length takes four bytes more
_LONG_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_SHORT_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_16)
_END = b"\xfe\xff\xdd\xe0\0\0\0\0"  # PS3.5 A.4
_UNDEFINED = 0xFFFFFFFF
_GROUP_2 = 0x20000
_PIXEL_DATA = int(Tag("PixelData"))
# The header of a film whose JPG can be copied, unless it has an element of ``_MAY_CHANGE`` too. The
# tags are plain integers, which are compared ten times as fast as pydicom's.
_PLAIN = {
    int(Tag("TransferSyntaxUID")): (b"UI", JPEGBaseline8Bit.encode()),
    int(Tag("SamplesPerPixel")): (b"US", b"\x01\x00"),
    int(Tag("PhotometricInterpretation")): (b"CS", b"MONOCHROME2 "),
    int(Tag("BitsAllocated")): (b"US", b"\x08\x00"),
    int(Tag("BitsStored")): (b"US", b"\x08\x00"),
    int(Tag("HighBit")): (b"US", b"\x07\x00"),
    int(Tag("PixelRepresentation")): (b"US", b"\x00\x00"),
}
_READ = {
    int(Tag("Rows")): b"US",
    int(Tag("Columns")): b"US",
    int(Tag("SOPClassUID")): b"UI",
    int(Tag("PixelSpacing")): b"DS",
    **{int(Tag(keyword)): vr for keyword, vr in zip(FACTS, (b"CS", b"CS", b"AS"), strict=True)},
}
_MAY_CHANGE = {int(tag) for tag in DISPLAY} | {
    int(Tag(keyword))
    for keyword in (
        *("NumberOfFrames", "PresentationLUTShape", "PresentationIntentType"),
        *FUNCTIONAL_GROUPS,
        *SIDES,
    )
    if keyword != "PixelSpacing"
}


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
            # Of fewer bits, the pixels lack those that the JPEG has beyond them.
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
        texts = [read_text(ds, keyword) for keyword in FACTS]
        facts = public_facts(texts, form.rows, form.columns)
        return Film(pixels, facts, original, jpg, tuple(remarks))


def _film_of_picture(data: bytes) -> Film:
    """A film from a PNG or JPG file."""
    pixels, original, remarks = read_picture(data)
    rows, columns = pixels.shape
    if flat := find_flat(pixels):
        remarks.append(flat)
    header = public_facts(["", "", ""], rows, columns)  # a picture says nothing of the patient
    jpg = grey_baseline(data, rows, columns)
    return Film(pixels, header, original, jpg, tuple(remarks))


def stored_jpeg(data: bytes) -> tuple[dict[str, object], bytes] | None:
    """The JPG inside the file of a film, where its pixels need not be decoded to know it.

    Args:
        data: the whole DICOM file.

    Returns:
        ``Film.header`` and ``Film.jpg``; or None, which says only that ``film_of`` must decide.

    Raises:
        FilmError: a fact of the header is damaged, or the JPG cannot be decoded to its end.
    """
    elements, frame = _plain_elements(data)
    if not _PLAIN.items() <= elements.items() or not _MAY_CHANGE.isdisjoint(elements):
        return None
    found = [elements.get(tag, (vr, b"")) for tag, vr in _READ.items()]
    if [vr for vr, _ in found] != [*_READ.values()]:
        return None
    rows, columns = (int.from_bytes(value, "little") for _, value in found[:2])
    sop_class, spacing, *texts = (
        value.decode("latin-1").strip(" \0").upper() for _, value in found[2:]
    )
    height, _, width = spacing.partition("\\")
    # A film that needs a remark is decoded.
    if sop_class in FOR_PROCESSING or height != width:
        return None
    if not 0 < rows * columns <= MAX_SAMPLES or max(rows, columns) > MAX_SIDE:
        return None
    jpg = grey_baseline(frame, rows, columns)
    if jpg is None or _is_sparse(jpg, rows, columns):
        return None
    if not looks_complete(jpg, rows, columns):
        check_complete(jpg)
    return public_facts(texts, rows, columns), jpg


def _plain_elements(data: bytes) -> tuple[dict[int, tuple[bytes, bytes]], bytes]:
    """The elements of a DICOM file before its pixels, and its one frame, as they are in the file.

    Own code: with pydicom's reader and checks a film of RSNA takes 1.3 ms instead of 0.6, a sixth
    instead of an eleventh of decoding and encoding it (``benchmarks/bench_convert.py``).

    Returns:
        VR and value by tag, and the frame; nothing where any of it is not plain: another coding
        than explicit VR, little endian, tags out of order, sequences of undefined length, or other
        than one frame in one fragment (PS3.5 7.1.2, A.4).
    """
    elements: dict[int, tuple[bytes, bytes]] = {}
    # Tags ascend, and the first is of group 2 (PS3.5 7.1, PS3.10 7.1).
    tag, length, offset = _GROUP_2 - 1, 0, PREFIX_END if has_prefix(data) else HEAD
    while offset < min(HEAD, len(data) - 12):
        group, number, vr, length = _ELEMENT.unpack_from(data, offset)
        offset += 8
        if vr in _LONG_VRS:
            length = int.from_bytes(data[offset : offset + 4], "little")
            offset += 4
        elif vr not in _SHORT_VRS:
            break
        before, tag = tag, group << 16 | number
        if not before < tag < _PIXEL_DATA:
            break
        elements[tag] = vr, data[offset : offset + length]
        offset += length
    # Exactly two items: the table of offsets and one fragment.
    start = offset + 8 + int.from_bytes(data[offset + 4 : offset + 8], "little")
    end = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
    marks = tag, length, data[offset : offset + 4], data[start : start + 4], data[end : end + 8]
    if marks != (_PIXEL_DATA, _UNDEFINED, ITEM, ITEM, _END):
        return {}, b""
    return elements, data[start + 8 : end]


def _is_sparse(jpg: bytes, rows: int, columns: int) -> bool:
    """Whether a JPG has so few bits that its picture may be one of one shade."""
    coded = len(jpg) - jpg.find(_START_OF_SCAN)
    return 8 * coded < _FEWEST_BITS * (rows * columns / 64)
