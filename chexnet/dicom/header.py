"""The data set of a DICOM file, read by pydicom within bounds.

pydicom believes what a file says of itself, and a few bytes can say a great deal. Here a file that
would cost more to read than any film does is refused while it is being read.

The bytes of a DICOM Part 10 file: where the data set begins, and the few facts taken from it.

A header holds names, dates and numbers of a person. What leaves this module is a short list of
facts, each checked against the values it may have, so that nothing else can travel on in its place.
"""

import io
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, UID_dictionary

MAX_FILE = 256 * 2**20  # bytes; the largest plain chest plate takes 30 MB
MAX_SAMPLES = 36_000_000  # values of one frame, 6,000 x 6,000 in grey: twice that plate

# PS3.3 C.8.1.3 View Position, and what MIMIC-CXR and others write for a lateral film.
VIEWS = frozenset(["AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAT", "LATERAL"])
SEXES = frozenset("MFO")  # PS3.3 C.7.1.1
_YEARS_PER_UNIT = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # PS3.5 6.2
_PIECE = 1 << 16  # bytes inflated at a time
_MOST_META = 1000  # elements; PS3.10 7.1 knows fifteen
_OLDEST = 120  # RSNA's table has 148 and 155: slips of the pen, not ages

PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 7.1.2
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_ELEMENT = struct.Struct("<HH2sH")
_LENGTH = struct.Struct("<I")


class FilmError(ValueError):
    """A file that gives no film. The message says why, and quotes nothing private."""


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file of a size that a film can have.

    Raises:
        FilmError: a folder, pipe or device; empty; or larger than ``MAX_FILE``.
        OSError: the file cannot be opened or read.
    """
    facts = Path(path).stat()
    if not stat.S_ISREG(facts.st_mode):
        raise FilmError("not a regular file")
    if facts.st_size > MAX_FILE:
        raise FilmError(f"{facts.st_size} bytes; a file of at most {MAX_FILE} is read")
    data = Path(path).read_bytes()
    if not data:
        raise FilmError("empty file")
    return data


def elements(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Steps through explicit little-endian elements without interpreting them.

    Args:
        data: the whole file.
        start: offset of the first element in bytes.

    Yields:
        Tag (group << 16 | element), offset and length of the value as the file says them. It ends
        at the first thing out of the ordinary: an unknown VR, a length past the end.
    """
    offset, end = start, len(data)
    while offset + 12 <= end:
        group, element, vr, length = _ELEMENT.unpack_from(data, offset)
        if vr in _SHORT_VRS:
            offset += 8
        elif vr in _LONG_VRS:
            (length,) = _LENGTH.unpack_from(data, offset + 8)
            offset += 12
        else:
            return
        yield group << 16 | element, offset, length
        offset += length


def file_meta(data: bytes) -> tuple[str, int]:
    """Transfer syntax and start of the data set (PS3.10 7.1).

    Returns:
        The Transfer Syntax UID, ``""`` if the file names none, and the offset in bytes.

    Raises:
        FilmError: the file is not DICOM Part 10, or its meta information has no end.
    """
    if data[128:132] != b"DICM":
        raise FilmError("not a DICOM file (no 'DICM' after its first 128 bytes)")
    syntax, start = "", 132
    for number, (tag, offset, length) in enumerate(elements(data, 132)):
        if tag >> 16 != 2:
            break
        if number == _MOST_META:
            raise FilmError(f"more than {_MOST_META} elements of meta information")
        if tag == 0x00020010:
            syntax = data[offset : offset + length].decode("ascii", "replace").strip(" \0")
        start = offset + length
    return syntax, start


def inflated(data: bytes, start: int) -> bytearray:
    """What a deflated data set holds (PS3.5 A.5).

    Raises:
        FilmError: more than ``MAX_FILE`` bytes, or no deflated data at all.
    """
    inflater, whole = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    for offset in range(start, len(data), _PIECE):
        piece = data[offset : offset + _PIECE]
        while piece and not inflater.eof:
            try:
                whole += inflater.decompress(piece, 64 * _PIECE)
            except zlib.error:
                raise FilmError("damaged: what should be deflated is not") from None
            piece = inflater.unconsumed_tail
            if len(whole) > MAX_FILE:
                raise FilmError(f"inflates to more than {MAX_FILE} bytes")
    return whole


def public_facts(values: Mapping[str, object]) -> dict[str, object]:
    """The facts of a header that may be passed on.

    Args:
        values: ``view`` (0018,5101), ``sex`` (0010,0040), ``age`` (0010,1010) as the file has them,
            ``rows`` and ``columns`` as integers.

    Returns:
        The same five keys. A view or sex that is none of the Standard's, and an age that is none
        (or outside 0 to 120), becomes None. Age is in whole years.
    """
    view, sex, age = (
        str(values.get(key) or "").strip(" \0").upper() for key in ("view", "sex", "age")
    )
    parts = re.fullmatch(r"(\d{1,3})([YMWD]?)", age, re.ASCII)
    years = int(int(parts[1]) * _YEARS_PER_UNIT[parts[2]]) if parts else None
    return {
        "view": view if view in VIEWS else None,
        "sex": sex if sex in SEXES else None,
        "age": years if years is not None and years <= _OLDEST else None,
        "rows": values["rows"],
        "columns": values["columns"],
    }


_DEFLATED = "1.2.840.10008.1.2.1.99"  # PS3.5 A.5
# Of a file: a film takes some hundreds, one with groups for 1,000 frames some ten thousands.
MAX_READS = 200_000
# Bytes of all that is kept but the pixels. The largest lookup table has 128 KiB (PS3.3 C.11.1).
MAX_KEPT = 2**21
_PIXELS = frozenset((PIXEL_DATA, 0x7FE00008, 0x7FE00009))  # integer, float, double float


class _Bounded(io.BytesIO):
    """Bytes that can be read a limited number of times: every element and item takes a read."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise FilmError(f"its header takes more than {MAX_READS} reads")
        return super().read(size)


def read_elements(data: bytes, keywords: list[str]) -> pydicom.Dataset:
    """Some elements of a file, not yet interpreted where pydicom can leave that for later.

    Args:
        data: the whole file.
        keywords: of the elements; the others are stepped over.

    Returns:
        The elements that are there, and ``file_meta`` with the transfer syntax alone.

    Raises:
        FilmError: not a DICOM file, a syntax that is none, pixel data without an end, or a header
            that is larger or has more parts than a film's.
    """
    name, start = file_meta(data)
    if not name:
        raise FilmError("its header names no transfer syntax")
    syntax = UID(name)
    if syntax not in UID_dictionary or not syntax.is_transfer_syntax:
        raise FilmError("a transfer syntax that the Standard does not name")
    if syntax == _DEFLATED:
        data, start = inflated(data, start), 0
    file = _Bounded(data)
    file.seek(start)
    wanted = {Tag(keyword) for keyword in keywords}
    kept, met, began = 0, 0, start

    def stop_when(tag: BaseTag, vr: str | None, length: int) -> bool:
        # Called before a value is read. What a value of undefined length took shows at the next.
        nonlocal kept, met, began
        if met in wanted and met not in _PIXELS:
            kept += file.tell() - began
        ahead = 0 if length == UNDEFINED_LENGTH or tag not in wanted or tag in _PIXELS else length
        if kept + ahead > MAX_KEPT:
            raise FilmError(f"a header of more than {MAX_KEPT} bytes without the pixels")
        met, began = tag, file.tell()
        return False

    coding = syntax.is_implicit_VR, syntax.is_little_endian
    ds = read_dataset(file, *coding, stop_when=stop_when, specific_tags=list(wanted))
    if met in wanted and met in _PIXELS and met not in ds:
        # pydicom leaves out everything if the last value has no end.
        raise FilmError("truncated: no whole pixel data")
    stop_when(BaseTag(0), None, 0)  # what the last one took
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    return ds
