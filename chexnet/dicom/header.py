"""The header of a DICOM film, read by pydicom within bounds and checked.

pydicom believes what a file says of itself, and a few bytes can claim a lot. A file that would cost
more to read than any film does is refused while it is being read.

A header holds names, dates and numbers of a person. Only the facts of ``public_facts`` leave this
package, each checked against the values it may have. No error message quotes text of a header.
"""

import contextlib
import io
import logging
import math
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    HTJ2K,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    UID_dictionary,
)
from pydicom.values import convert_value

from chexnet.dicom.codecs import DECODER_DEPENDENCIES

MAX_FILE = 256 * 2**20  # bytes; the largest uncompressed chest film takes 30 MB
MAX_SAMPLES = 36_000_000  # values of one frame, 6,000 x 6,000 in grey: twice that film
MAX_SIDE = 65535  # pixels; Rows and Columns have 16 bits (PS3.3 C.7.6.3)
# A film takes some hundreds of reads, one with groups for 1,000 frames some ten thousands.
MAX_READS = 200_000
# Bytes of one value by its kind: pixels; sequences and tables, of which the largest has 128 KiB
# (PS3.3 C.11.1); numbers and text, which pydicom makes some hundred times larger.
MAX_BYTES = {bytes: MAX_FILE, Dataset: 2**21, object: 2**21}
MAX_BYTES |= dict.fromkeys([int, float, str, list], 2**16)

GREYS = ("MONOCHROME1", "MONOCHROME2")  # PS3.3 C.7.6.3.1.2
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
# Elements that change how stored values are displayed (PS3.3 C.7.5.1.1.2, C.11.1, C.11.2).
DISPLAY = frozenset(
    Tag(keyword)
    for keyword in (
        *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
        *("ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    )
)
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
MAX_ITEMS = 8  # tables or windows of a film that are tried; devices write one to five
# What reads a transfer syntax that Pillow cannot; licenses BSD and MIT.
REMEDIES = dict.fromkeys(DECODER_DEPENDENCIES, "imagecodecs") | dict.fromkeys(
    (HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL), "pylibjpeg pylibjpeg-openjpeg"
)
# Of the Standard since 2024, and not known to pydicom 3.0 (PS3.6 A-1).
_NEW_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
# SOP classes of films "for processing": digital X-ray, mammography, intra-oral (PS3.4 B.5).
FOR_PROCESSING = frozenset(f"1.2.840.10008.5.1.4.1.1.1.{kind}.1" for kind in (1, 2, 3))
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # PS3.3 C.8.11.3.1.2
# Height and width of a pixel (PS3.3 C.7.6.3.1.7, 10.7.1).
SIDES = ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_ROUNDING = 0.01  # by which sides of a square pixel may differ
# PS3.3 C.8.1.3 View Position, and what MIMIC-CXR and others write for a lateral film.
_VIEWS = frozenset(["AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAT", "LATERAL"])
_SEXES = frozenset("MFO")  # PS3.3 C.7.1.1
FACTS = ("ViewPosition", "PatientSex", "PatientAge")  # what ``public_facts`` is made of
YEARS_PER_UNIT = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # PS3.5 6.2
OLDEST = 120  # years; RSNA has ages up to 155, ChestX-ray14 up to 414: data-entry errors

HEAD = 2**16  # bytes of a file that say whether it is a film and which
PREFIX_END = 132  # bytes of preamble and prefix (PS3.10 7.1)
_VRS = b"AE|AS|CS|DA|DT|IS|LO|LT|OB|PN|SH|ST|TM|UI|UL|UN|US"
# The first bytes of a file without preamble: an element of group 2, or one of group 8, its VR in
# explicit coding or its length, at most 64, in implicit coding (PS3.5 7.1).
_META = re.compile(rb"\x02\0[\0-\x02\x10\x12\x13\x16]\0(?:AE|OB|SH|UI|UL)")
_WITHOUT_META = {
    re.compile(rb"\x08\0.\0(?:" + _VRS + rb")", re.DOTALL): ExplicitVRLittleEndian,
    re.compile(rb"\0\x08\0.(?:" + _VRS + rb")", re.DOTALL): ExplicitVRBigEndian,
}
_IMPLICIT = re.compile(rb"\x08\0.\0[\0-\x40]\0\0\0", re.DOTALL)
tag_of = cache(Tag)  # pydicom finds an element much faster by its tag than by its keyword
# Values that need no other element to be converted. ``convert_value`` alone takes a third of the
# time of ``ds[tag]``: 0.36 instead of 0.41 ms for a film of RSNA.
_PLAIN_VRS = frozenset(["AS", "CS", "DS", "IS", "OB", "OW", "UI", "US"])
_Kind = TypeVar("_Kind")
# Warnings and pydicom's log are switched off for the whole process, so one thread reads at a time.
_ONE_AT_A_TIME = threading.RLock()


class FilmError(ValueError):
    """A file that gives no film. The message says why, and quotes nothing private.

    Example:
        >>> from chexnet.dicom import FilmError, read_film
        >>> try:
        ...     read_film("data/phantom/images.csv")
        ... except FilmError as error:
        ...     print(error)
        data/phantom/images.csv: not a DICOM, PNG or JPG file
    """


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silences warnings and pydicom's log, which quote values of the header.

    They are switched off for the whole process, so one thread at a time is inside.

    Example:
        >>> import warnings
        >>> from chexnet.dicom import quiet_pydicom
        >>> with quiet_pydicom():
        ...     warnings.warn("Value of (0010,1010)")
    """
    logger = logging.getLogger("pydicom")
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def library_errors(reason: str) -> Iterator[None]:
    """Turns what a library raises on damaged data into a ``FilmError`` with this reason.

    Only calls of a library belong inside, so that an error of our own code surfaces as what it is.

    Example:
        >>> from chexnet.dicom import library_errors
        >>> with library_errors("film.dcm: damaged"):
        ...     int("seven rows")
        Traceback (most recent call last):
        ...
        chexnet.dicom.header.FilmError: film.dcm: damaged
    """
    try:
        yield
    except (FilmError, MemoryError):
        raise
    except Exception:
        raise FilmError(reason) from None  # the library's own message may quote the header


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file of a size that a film can have.

    Raises:
        FilmError: a folder, pipe or device; empty; or larger than ``MAX_FILE``.
        OSError: the file cannot be opened or read.
    """
    path = Path(path)
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise FilmError("not a regular file")
    if facts.st_size > MAX_FILE:
        raise FilmError(f"{facts.st_size} bytes; expected at most {MAX_FILE}")
    if not (data := path.read_bytes()):
        raise FilmError("empty file")
    return data


class _BoundedFile(io.BytesIO):
    """Bytes that can be read a limited number of times: every element and item takes a read."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise FilmError(f"its header takes more than {MAX_READS} reads")
        return super().read(size)


def bounded(data: bytes) -> io.BytesIO:
    """A file of these bytes. Counting reads takes time, so only a large file's are counted."""
    return _BoundedFile(data) if len(data) > 8 * MAX_READS else io.BytesIO(data)


def has_prefix(head: bytes) -> bool:
    """Whether a file begins as the Standard asks for (PS3.10 7.1)."""
    return head[PREFIX_END - 4 : PREFIX_END] == b"DICM"


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a DICOM file, perhaps without preamble."""
    return has_prefix(head) or bool(_META.match(head)) or _syntax_without_meta(head) is not None


def _syntax_without_meta(head: bytes) -> UID | None:
    """The transfer syntax of a file that begins with its data set, None if it does not seem to."""
    for begins, syntax in _WITHOUT_META.items():
        if begins.match(head):
            return syntax
    if not _IMPLICIT.match(head):
        return None
    behind = 8 + head[4]  # a second element of the same group or a later one
    return ImplicitVRLittleEndian if head[0:2] <= head[behind : behind + 2] else None


def read_uid(path: str | Path) -> str:
    """The SOP Instance UID of a DICOM file, from its first bytes.

    Raises:
        FilmError: not a DICOM file, damaged, or there is no valid UID.
        OSError: the file cannot be opened or read.
    """
    with Path(path).open("rb") as file:
        head = file.read(HEAD)
    with quiet_pydicom():
        ds = _read_up_to(tag_of("SOPInstanceUID"), *_data_set(head, HEAD))
        uid = UID(read_value(ds, "SOPInstanceUID", str) or "")
    if not uid or not uid.is_valid:
        raise FilmError("no valid SOP Instance UID")
    return str(uid)


def _data_set(data: bytes, most: int) -> tuple[io.BytesIO, UID]:
    """The data set of a DICOM file (PS3.10 7), inflated if need be, and its transfer syntax.

    Args:
        data: the file, or its first part.
        most: bytes that it may inflate to; of a part of a file it inflates no more.

    Raises:
        FilmError: not a DICOM file, damaged, or of an unknown transfer syntax.
    """
    if not looks_like_dicom(data):
        raise FilmError("not a DICOM, PNG or JPG file")
    file = bounded(data)
    syntax = None if has_prefix(data) else _syntax_without_meta(data)
    start = PREFIX_END if has_prefix(data) else 0
    # Some files have their preamble and meta information twice; the second set is the data's own.
    while syntax is None or has_prefix(data[start - PREFIX_END : start]):
        file.seek(start)
        with library_errors("damaged: its file meta information cannot be read"):
            # Explicit VR, little endian, all of group 2 (PS3.10 7.1).
            meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        syntax = UID(read_value(meta, "TransferSyntaxUID", str) or syntax or "")
        start = file.tell() + PREFIX_END
    if not syntax:
        raise FilmError("its header names no transfer syntax")
    if name := _NEW_SYNTAXES.get(syntax):
        raise FilmError(f"there is no decoder for {name}")
    if syntax not in UID_dictionary or not syntax.is_transfer_syntax:
        raise FilmError("unknown transfer syntax")
    if syntax.is_deflated:  # PS3.5 A.5
        with library_errors("damaged: its deflated data cannot be inflated"):
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), most)
        file = bounded(data)
    return file, syntax


def _read_up_to(last: BaseTag, file: io.BytesIO, syntax: UID) -> Dataset:
    """Reads the elements of a data set up to one, or up to the zeros that fill some files."""
    coding = syntax.is_implicit_VR, syntax.is_little_endian
    with library_errors("damaged: its header cannot be read"):
        return read_dataset(file, *coding, stop_when=lambda tag, vr, length: not tag or tag > last)


def read_elements(data: bytes) -> tuple[Dataset, Decoder]:
    """Reads the elements of a DICOM file, not yet converted where pydicom can leave that for later.

    Args:
        data: the whole file (PS3.10 7).

    Returns:
        The elements, to be had through ``read_value``, and the decoder for its transfer syntax.

    Raises:
        FilmError: not a DICOM file, damaged, out of bounds, or there is no such decoder.
    """
    file, syntax = _data_set(data, MAX_FILE + 1)
    if file.getbuffer().nbytes > MAX_FILE:
        raise FilmError(f"inflates to more than {MAX_FILE} bytes")
    with library_errors(f"there is no decoder for {syntax.name}"):
        decoder = get_decoder(syntax)
    if not decoder.is_available:
        raise FilmError(no_decoder(syntax))
    ds = _read_up_to(tag_of("PixelData"), file, syntax)  # behind it are signatures
    if not ds:  # pydicom leaves out everything if a value has no end
        raise FilmError("truncated: its data set has no end")
    # PS3.3 C.7.6.16: enhanced files keep the display elements for all frames or for each.
    for groups in FUNCTIONAL_GROUPS:
        group = read_value(ds, groups, Dataset)
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if group and (item := read_value(group, macro, Dataset)):
                ds.update({tag: item.get_item(tag) for tag in DISPLAY & item.keys()})
    return ds, decoder


def no_decoder(syntax: UID) -> str:
    """Says that no decoder is installed, and what to install."""
    return f"no decoder for {syntax.name} is installed; pip install {REMEDIES.get(syntax)}"


def read_items(ds: Dataset, keyword: str) -> list[Dataset]:
    """The first items of a sequence, none if it is missing; errors as of ``read_value``."""
    if read_value(ds, keyword, Dataset) is None:
        return []
    return list(ds[tag_of(keyword)].value[:MAX_ITEMS])


def read_value(ds: Dataset, keyword: str, kind: type[_Kind]) -> _Kind | None:
    """The value of an element, None if it is missing or empty.

    Args:
        ds: the header, or an item of a sequence in it.
        keyword: of the element.
        kind: expected type. Of several ``float`` (which may be integers too) and of the items of a
            sequence (``Dataset``) the first is returned; a ``list`` of one value too.

    Raises:
        FilmError: the value is too large, damaged, of another type, or not finite.
    """
    tag = tag_of(keyword)
    if tag not in ds:
        return None
    with library_errors(f"damaged: {keyword} cannot be read"):
        element = ds.get_item(tag)  # not yet converted: that can cost a hundred times its size
        if isinstance(element, RawDataElement) and len(element.value or b"") > MAX_BYTES[kind]:
            raise FilmError(f"{keyword}: more than {MAX_BYTES[kind]} bytes")
        if isinstance(element, RawDataElement) and element.VR in _PLAIN_VRS:
            value = convert_value(element.VR, element)
        else:
            value = ds[tag].value
    if isinstance(value, MultiValue):
        value = list(value)
    if isinstance(value, Sequence) or (isinstance(value, list) and kind is float):
        value = value[0] if value else None
    if kind is float and isinstance(value, int):
        value = float(value)
    if value is None or value == "":
        return None
    if kind is list and not isinstance(value, list):
        value = [value]
    if isinstance(value, list) and kind not in (list, object):
        raise FilmError(f"{keyword}: {len(value)} values; expected one")
    if not isinstance(value, kind):
        raise FilmError(f"{keyword}: expected one value of type {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise FilmError(f"{keyword}: expected a finite number")
    return value


def read_text(ds: Dataset, keyword: str) -> str:
    """The text of an element in capitals, without padding; "" if it is missing."""
    return str(read_value(ds, keyword, object) or "").strip(" \0").upper()


@dataclass(frozen=True)
class PixelFormat:
    """How the pixels of a film are stored (PS3.3 C.7.6.3), in the words of pydicom's decoders."""

    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    planar_configuration: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    number_of_frames: int

    @property
    def value_range(self) -> tuple[int, int]:
        """The lowest and highest value that the stored bits can hold."""
        lowest = -(2 ** (self.bits_stored - 1)) if self.pixel_representation else 0
        return lowest, lowest + 2**self.bits_stored - 1


def read_pixel_format(ds: Dataset) -> PixelFormat:
    """Reads how the pixels are stored, and refuses what cannot be converted before it is decoded.

    Raises:
        FilmError: no pixels, or pixels of a kind that cannot be converted.
    """
    if any(tag_of(name) in ds for name in ("FloatPixelData", "DoubleFloatPixelData")):
        raise FilmError("floating-point pixels; expected integers of 8 to 16 bits")
    if tag_of("DirectoryRecordSequence") in ds:  # PS3.3 F.3.2.2
        raise FilmError("a DICOMDIR, the table of contents of a disc; no film")
    if tag_of("PixelData") not in ds:
        raise FilmError("no pixel data")

    def integer(keyword: str, default: int | None = None) -> int:
        value = read_value(ds, keyword, int)
        value = default if value is None else value
        if value is None:
            raise FilmError(f"its header lacks {keyword}")
        return int(value)

    rows, columns, samples = integer("Rows"), integer("Columns"), integer("SamplesPerPixel", 1)
    allocated, frames = integer("BitsAllocated"), integer("NumberOfFrames", 1) or 1
    bits = integer("BitsStored", allocated) or allocated
    high, sign = integer("HighBit", bits - 1), integer("PixelRepresentation", 0)
    if not bits <= high + 1 <= allocated:  # a High Bit that cannot be
        high = bits - 1
    planar = integer("PlanarConfiguration", 0)
    photometric = (read_value(ds, "PhotometricInterpretation", str) or "").strip()
    check_size(rows, columns, samples)
    if allocated not in (8, 16) or not 1 < bits <= allocated:
        raise FilmError(f"{bits} bits in {allocated} per value; expected 2 to 16 in 8 or 16")
    if photometric not in GREYS + COLOURS:
        raise FilmError(f"photometric interpretation: expected {', '.join(GREYS + COLOURS)}")
    if samples != (1 if photometric in (*GREYS, "PALETTE COLOR") else 3):
        raise FilmError(f"{samples} values per pixel do not go with {photometric}")
    if samples > 1 and bits != 8:
        raise FilmError(f"color of {bits} bits; expected 8")
    if frames < 1:
        raise FilmError(f"{frames} frames; expected at least 1")
    if sign not in (0, 1) or planar not in (0, 1):
        raise FilmError(
            f"pixel representation {sign}, planar configuration {planar}; expected 0, 1"
        )
    return PixelFormat(
        *(rows, columns, samples, photometric, planar, allocated, bits, high, sign, frames)
    )


def check_size(rows: int, columns: int, samples: int) -> None:
    """Refuses a picture that is larger than any film, or empty."""
    size = rows * columns * samples
    if min(rows, columns) < 1 or max(rows, columns) > MAX_SIDE or size > MAX_SAMPLES:
        raise FilmError(
            f"{rows} x {columns} pixels of {samples} values; expected 1 to {MAX_SAMPLES} values"
        )


def find_contradictions(ds: Dataset, photometric: str, high_bit: int) -> list[str]:
    """What the header says that is not followed, in plain words; mostly nothing.

    Args:
        ds: the header.
        photometric: the photometric interpretation that is followed.
        high_bit: that which is followed.
    """
    remarks = []
    stated = read_value(ds, "HighBit", object)
    if stated not in (None, high_bit):
        remarks.append(f"High Bit {stated} cannot be; read as {high_bit}")
    shape, intent, sop_class = (
        read_text(ds, keyword)
        for keyword in ("PresentationLUTShape", "PresentationIntentType", "SOPClassUID")
    )
    if shape in _SHAPES.values() and shape != _SHAPES.get(photometric, shape):
        remarks.append(f"Presentation LUT Shape {shape} contradicts {photometric}; not followed")
    if intent == "FOR PROCESSING" or sop_class in FOR_PROCESSING:
        remarks.append("FOR PROCESSING: its values are not meant for display")
    for keyword in SIDES:
        if (ratio := _ratio(ds, keyword)) and abs(ratio - 1) > _ROUNDING:
            remarks.append(f"pixels are not square: height / width {ratio:.3g}; not resampled")
            break
    return remarks


def _ratio(ds: Dataset, keyword: str) -> float | None:
    """Height to width of a pixel; None if not given or not two positive numbers."""
    try:
        sides = read_value(ds, keyword, list) or []
    except FilmError:
        return None
    if [isinstance(side, int | float) for side in sides] != [True, True]:
        return None
    rows, columns = (float(side) for side in sides)
    return rows / columns if 0 < rows < math.inf and 0 < columns < math.inf else None


def public_facts(texts: list[str], rows: int, columns: int) -> dict[str, object]:
    """The facts of a header that may be passed on, from the texts of ``FACTS`` and the size.

    Returns:
        ``view`` (0018,5101) and ``sex`` (0010,0040), None if not one of the Standard's; ``age``
        (0010,1010) in whole years, None if invalid or above 120; ``rows`` and ``columns``.
    """
    view, sex, age = texts
    parts = re.fullmatch(r"(\d{1,3})([YMWD]?)", age, re.ASCII)
    years = int(int(parts[1]) * YEARS_PER_UNIT[parts[2]]) if parts else None
    return {
        "view": view if view in _VIEWS else None,
        "sex": sex if sex in _SEXES else None,
        "age": years if years is not None and years <= OLDEST else None,
        "rows": rows,
        "columns": columns,
    }
