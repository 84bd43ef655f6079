"""JPEG streams as bytes: the size they declare, and a copy without remarks.

A film of RSNA is a grey baseline JPEG inside DICOM. Copying it keeps every pixel as it is and takes
a fraction of the time of decoding and encoding it again.
"""

import io
import re
import struct
from bisect import bisect
from collections.abc import Iterator
from itertools import islice

import numpy as np
from PIL import Image
from pydicom.pixels.utils import get_j2k_parameters

from chexnet.dicom.header import FilmError, library_errors
from chexnet.files import SOI, decode_jpeg

# Names of ITU-T T.81 table B.1.
_EOI = b"\xff\xd9"
_SOF0, DHT, SOS, _DQT, DRI, _APP0, _COM = 0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xFE
_REMARKS = frozenset((*range(_APP0, _APP0 + 16), _COM))
# Every start of frame, JPEG-LS's (T.87) included; C4, C8 and CC are other things.
_FRAMES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_KINDS = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC3: "lossless", 0xF7: "LS"}
# In coded data FF 00 is a byte FF and FF D0 to FF D7 are restarts; anything else is a marker.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)
# What speaks for a complete JPEG, see `looks_complete`; figures of RSNA's 875 films.
_BITS = (46, 100)  # of 8 x 8 pixels; 823 films have as many. The densest has 89, half of it 45
_LARGE = 2**16  # bytes; the smallest film has 67,000. Less is decoded in no time
_TAIL = 64  # bytes; in 861 films they suffice to find the beginning of a block
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MOST_SCANS = 32  # a progressive grey JPEG has six


def segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each marker segment before the coded data (T.81 B.1.1.4)."""
    offset = 2
    while stream[:2] == SOI and offset + 4 <= len(stream) and stream[offset] == 0xFF:
        if stream[offset + 1] == 0xFF:  # a fill byte
            offset += 1
            continue
        end = offset + 2 + int.from_bytes(stream[offset + 2 : offset + 4])
        yield stream[offset + 1], offset, end
        offset = end


def read_jpeg_frame(stream: bytes) -> tuple[str, int, int, int, int]:
    """What a JPEG stream declares: its kind, bits a value, rows, columns, and values a pixel.

    Raises:
        FilmError: it declares nothing.
    """
    for marker, start, end in segments(stream):
        if marker in _FRAMES and min(end, len(stream)) - start >= 10:
            bits, rows, columns, samples = struct.unpack(">BHHB", stream[start + 4 : start + 10])
            return _KINDS.get(marker, "unusual"), bits, rows, columns, samples
    raise FilmError("damaged: its JPEG declares no size")


def check_complete(stream: bytes) -> None:
    """Checks that a JPEG of 8 bits can be decoded to its end, and ends there.

    Decoders fill what is missing with gray, without an error; an end marker may be there all the
    same. This decodes all coded data, and an eighth of rows and columns of the picture.

    Raises:
        FilmError: its coded data are damaged, too few or too many.
    """
    with library_errors("truncated or damaged: its JPEG cannot be decoded to its end"):
        decode_jpeg(stream, smallest=True)


def looks_complete(stream: bytes, rows: int, columns: int) -> bool:
    """Whether a gray baseline JPEG is very likely complete, without decoding it.

    For a film that is copied, `check_complete` takes twice the time of all other work. So a large
    film of the usual size, without zeros, whose last block ends where its data end, is not decoded.
    Of RSNA's films cut at random, 3 % end like that too. They are found when the JPG is read.

    Args:
        stream: as of `grey_baseline`, from its first marker to its end marker.
        rows: of the picture.
        columns: of the picture.
    """
    bits = 8 * len(stream) / (rows * columns / 64)
    if len(stream) < _LARGE or not _BITS[0] <= bits <= _BITS[1]:
        return False
    words = np.frombuffer(stream, np.uint64, len(stream) // 8)
    if not (words[1:] | words[:-1]).all():  # 16 zeros in a row, which one film has
        return False
    tables, end, selected = {}, 0, b""
    for marker, start, end in segments(stream):
        content = stream[start + 4 : end]
        if marker == SOS:
            selected = content[2:3]
            break
        while marker == DHT and content:
            size = 17 + sum(content[1:17])
            tables[content[0]], content = content[1:size], content[size:]
    dc, ac = (tables.get(number, b"") for number in (selected[0] >> 4, 16 + selected[0] % 16))
    tail = RESTART.split(stream[max(end, len(stream) - _TAIL) : -2])[-1]
    return bool(dc and ac) and _ends_with_a_block(tail.replace(b"\xff\0", b"\xff"), dc, ac)


def _ends_with_a_block(coded: bytes, dc: bytes, ac: bytes) -> bool:
    """Whether the last block of coded data is whole and followed by less than a byte of ones.

    Decoding begins anywhere in a block, and falls into step with the blocks after a few codes.

    Args:
        coded: the end of the coded data of one component, without stuffed zeros.
        dc: Huffman table: how many codes have 1 to 16 bits, and their symbols (T.81 B.2.4.2).
        ac: the same for the other coefficients.
    """
    (dc_codes, dc_steps), (ac_codes, ac_steps) = _codes(dc), _codes(ac)
    ones = 0xFFFF
    bits, left = int.from_bytes(coded) << 16 | ones, 8 * len(coded)
    while left > 0:
        left -= dc_steps[bisect(dc_codes, bits >> left & ones) - 1][0]
        place = 1
        while place < 64 and left >= 0:
            used, step = ac_steps[bisect(ac_codes, bits >> left & ones) - 1]
            left, place = left - used, place + step
        if 0 <= left < 8 and bits >> 16 & (1 << left) - 1 == (1 << left) - 1:
            return True
    return False


def _codes(table: bytes) -> tuple[list[int], list[tuple[int, int]]]:
    """A Huffman table to be searched (T.81 C.2).

    Returns:
        The codes, filled up to 16 bits, in ascending order; and for each the bits to go on by, with
        those of the value behind it, and the coefficients, 64 for the end of the block.
    """
    codes, steps, code, symbols = [], [], 0, iter(table[16:])
    for length, count in enumerate(table[:16], 1):
        for symbol in islice(symbols, count):
            codes.append(code)
            steps.append((length + symbol % 16, (symbol >> 4) + 1 if symbol else 64))
            code += 1 << 16 - length
    return codes, steps


def check_jpeg(stream: bytes, rows: int, columns: int) -> int:
    """Checks a JPEG, JPEG-LS or JPEG 2000 stream that is about to be decoded.

    Returns:
        The bits of its values.

    Raises:
        FilmError: another size than expected, no end, so many scans that it takes too long, or
            damaged coded data.
    """
    if stream[:2] == SOI:
        kind, depth, *size, _ = read_jpeg_frame(stream)
    else:
        with library_errors("damaged: its JPEG 2000 stream cannot be read"):
            image = Image.open(io.BytesIO(stream), formats=("JPEG2000",))
            depth = get_j2k_parameters(stream)["precision"]
        kind, size = "", [image.height, image.width]
    if size != [rows, columns]:
        raise FilmError(f"its JPEG is {size[0]} x {size[1]}; expected {rows} x {columns} pixels")
    if kind and _EOI not in stream:
        raise FilmError("truncated: its JPEG has no end")
    if kind and (scans := stream.count(bytes((0xFF, SOS)))) > _MOST_SCANS:
        raise FilmError(f"its JPEG has {scans} scans; expected at most {_MOST_SCANS}")
    if depth == 8 and kind in ("baseline", "extended", "progressive"):
        check_complete(stream)
    return depth


def grey_baseline(stream: bytes, rows: int, columns: int) -> bytes | None:
    """A JPEG stream ready to be a file: from its first marker to its end marker, without remarks.

    Comments and application segments are dropped (they can hold a name, or a small copy of the
    film), but for a JFIF segment without thumbnail; so is padding after the end. No pixel changes.

    Args:
        stream: the stream, perhaps padded.
        rows: the height it must have.
        columns: the width it must have.

    Returns:
        None if it is not a single grey 8-bit baseline scan of that size with nothing after it.
    """
    size_line = b"\x00\x0b\x08" + rows.to_bytes(2) + columns.to_bytes(2) + b"\x01"
    kept, sized = [SOI], False
    for marker, start, end in segments(stream):
        segment = stream[start:end]
        if marker in _REMARKS:
            if marker == _APP0 and segment[2:9] == b"\x00\x10JFIF\x00" and segment[16:] == b"\0\0":
                kept.append(segment)
        elif _is_table(marker, segment[4:]):
            kept.append(segment)
        elif marker == _SOF0 and segment[2:10] == size_line and not sized:
            kept.append(segment)
            sized = True
        elif marker == SOS and sized and segment[2:5] == b"\x00\x08\x01":
            following = MARKER.search(stream, end)
            if following is None or following[0] != _EOI:
                return None
            before = b"".join([*kept, segment])
            # Without a copy, where nothing is left out.
            if stream.startswith(before):
                return stream[: following.end()]
            return before + stream[end : following.end()]
        else:
            return None
    return None


def _is_table(marker: int, content: bytes) -> bool:
    """Whether a segment is tables and nothing else (T.81 B.2.4)."""
    if marker == _DQT:
        return len(content) % 65 == 0 and all(number < 4 for number in content[::65])
    if marker == DRI:
        return len(content) == 2
    while marker == DHT and len(content) >= 17 and content[0] in (0x00, 0x01, 0x10, 0x11):
        size = 17 + sum(content[1:17])
        if size == len(content):
            return True
        content = content[size:]
    return False
