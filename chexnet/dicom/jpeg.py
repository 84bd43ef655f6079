"""JPEG streams as bytes: their size, and the film whose file already holds the JPG we want.

A film of RSNA is a grey baseline JPEG inside DICOM. Cutting it out keeps every pixel as it is and
takes a fraction of the time of decoding and encoding it again.
"""

import io
import re
from itertools import islice

from PIL import Image

from chexnet.dicom.header import (
    MAX_SAMPLES,
    PIXEL_DATA,
    UNDEFINED_LENGTH,
    elements,
    file_meta,
    public_facts,
)

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"  # PS3.5 A.4.1

# Names of ITU-T T.81 table B.1.
_SOI, EOI = b"\xff\xd8", b"\xff\xd9"
_SOF0, _DHT, SOS, _DQT, _DRI, _APP0, _COM = 0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xFE
_REMARKS = frozenset((*range(_APP0, _APP0 + 16), _COM))
# Every start of frame, JPEG-LS's (T.87) included; C4, C8 and CC are other things.
_FRAMES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
# In coded data FF 00 is a byte FF and FF D0 to FF D7 are restarts; anything else is a marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)

ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # PS3.5 A.4
# What a film must say to be passed on unseen: one sample of 8 unsigned bits, 0 is black.
_PLAIN = {
    0x00280002: b"\x01\x00",  # Samples per Pixel
    0x00280100: b"\x08\x00",  # Bits Allocated
    0x00280101: b"\x08\x00",  # Bits Stored
    0x00280102: b"\x07\x00",  # High Bit
    0x00280103: b"\x00\x00",  # Pixel Representation
}
_LONGEST_TEXT = 64  # bytes of a value that are looked at
_MOST_ELEMENTS = 5000  # a film of RSNA has 30
# What may change the pixels, so that film.py has to look: number of frames, padding and its limit,
# window centre and width, rescale intercept and slope, modality and VOI LUT, functional groups.
_MAY_CHANGE = frozenset(
    (
        *(0x00280008, 0x00280120, 0x00280121, 0x00281050, 0x00281051, 0x00281052, 0x00281053),
        *(0x00283000, 0x00283010, 0x52009229, 0x52009230),
    )
)


def frame_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream declares; None if it has none."""
    if frame[:2] != _SOI:
        try:
            with Image.open(io.BytesIO(frame), formats=("JPEG2000",)) as image:
                return image.height, image.width
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
    offset = 2
    while offset + 9 <= len(frame) and frame[offset] == 0xFF:
        marker = frame[offset + 1]
        if marker == 0xFF:  # a fill byte
            offset += 1
        elif marker in _FRAMES:
            return (
                int.from_bytes(frame[offset + 5 : offset + 7]),
                int.from_bytes(frame[offset + 7 : offset + 9]),
            )
        else:
            offset += 2 + int.from_bytes(frame[offset + 2 : offset + 4])
    return None


def grey_baseline(frame: bytes, rows: int, columns: int) -> bytes | None:
    """A JPEG stream ready to be a file: from its first marker to its end marker, remarks left out.

    Comments and application segments are dropped (they can hold a name, or a small copy of the
    film), but for a JFIF segment without thumbnail; so is padding after the end. No pixel changes.

    Args:
        frame: the stream, perhaps padded.
        rows: the height it must have.
        columns: the width it must have.

    Returns:
        None if it is not a single grey 8-bit baseline scan of that size with nothing after it.
    """
    size_line = b"\x00\x0b\x08" + rows.to_bytes(2) + columns.to_bytes(2) + b"\x01"
    kept, offset, sized = [_SOI], 2, False
    while frame[:2] == _SOI and offset + 4 <= len(frame) and frame[offset] == 0xFF:
        marker = frame[offset + 1]
        following = offset + 2 + int.from_bytes(frame[offset + 2 : offset + 4])
        segment = frame[offset:following]
        offset = following
        if marker in _REMARKS:
            if marker == _APP0 and segment[2:9] == b"\x00\x10JFIF\x00" and segment[16:] == b"\0\0":
                kept.append(segment)
        elif _is_table(marker, segment[4:]):
            kept.append(segment)
        elif marker == _SOF0 and segment[2:10] == size_line and not sized:
            kept.append(segment)
            sized = True
        elif marker == SOS and sized and segment[2:5] == b"\x00\x08\x01":
            end = _MARKER.search(frame, following)
            if end is None or end[0] != EOI:
                return None
            return b"".join([*kept, segment, frame[following : end.end()]])
        else:
            return None
    return None


def _is_table(marker: int, content: bytes) -> bool:
    """Whether a segment is tables and nothing else (T.81 B.2.4)."""
    if marker == _DQT:
        return len(content) % 65 == 0 and all(number < 4 for number in content[::65])
    if marker == _DRI:
        return len(content) == 2
    while marker == _DHT and len(content) >= 17 and content[0] in (0x00, 0x01, 0x10, 0x11):
        size = 17 + sum(content[1:17])
        if size == len(content):
            return True
        content = content[size:]
    return False


def stored_jpeg(data: bytes) -> tuple[dict[str, object], bytes] | None:
    """The JPG inside the file of a film, where it can be had without a closer look.

    Args:
        data: the whole DICOM file.

    Returns:
        The public facts (see ``header.public_facts``) and the JPG; or None, which says only that
        ``film.py`` must decide.

    Raises:
        FilmError: the file is not DICOM.
    """
    syntax, start = file_meta(data)
    if syntax != JPEG_BASELINE:
        return None
    values, last = {}, 0
    for tag, offset, length in islice(elements(data, start), _MOST_ELEMENTS):
        if tag <= last or tag == PIXEL_DATA or tag in _MAY_CHANGE:
            break
        values[tag] = data[offset : offset + min(length, _LONGEST_TEXT)]
        last = tag
    else:
        return None
    if tag != PIXEL_DATA or length != UNDEFINED_LENGTH:
        return None
    if any(values.get(tag) != value for tag, value in _PLAIN.items()):
        return None
    if values.get(0x00280004, b"").strip() != b"MONOCHROME2":  # Photometric Interpretation
        return None
    rows, columns = (
        int.from_bytes(values.get(tag, b""), "little") for tag in (0x00280010, 0x00280011)
    )
    if not 0 < rows * columns <= MAX_SAMPLES or max(rows, columns) > 0xFFFF:
        return None
    # An item of offsets, one fragment, the delimiter.
    fragment = offset + 8 + int.from_bytes(data[offset + 4 : offset + 8], "little")
    end = fragment + 8 + int.from_bytes(data[fragment + 4 : fragment + 8], "little")
    tags = data[offset : offset + 4], data[fragment : fragment + 4], data[end : end + 4]
    if tags != (ITEM, ITEM, _DELIMITER):
        return None
    jpg = grey_baseline(data[fragment + 8 : end], rows, columns)
    if jpg is None:
        return None
    tags_of = {"view": 0x00185101, "sex": 0x00100040, "age": 0x00101010}
    texts = {key: values.get(tag, b"").decode("ascii", "replace") for key, tag in tags_of.items()}
    return public_facts({**texts, "rows": rows, "columns": columns}), jpg
