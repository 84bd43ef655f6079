"""The data set of a DICOM file, read by pydicom within bounds.

pydicom believes what a file says of itself, and a few bytes can say a great deal. Here a file that
would cost more to read than any film does is refused while it is being read.
"""

import io

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, UID_dictionary

from chexnet.header import PIXEL_DATA, UNDEFINED_LENGTH, FilmError, file_meta, inflated

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
