"""Tests of reading within bounds: the elements that pydicom reads, nothing needlessly refused."""

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from benchmarks.fuzz_convert import DEFLATED, film_bytes, lut
from chexnet.dicom import FilmError
from chexnet.dicom.film import film_of
from chexnet.dicom.header import read_elements

SMALL = np.arange(64, dtype=np.uint8).reshape(8, 8)
NAMES = ["Rows", "Columns", "BitsAllocated", "WindowCenter", "VOILUTSequence", "PixelData"]


@pytest.mark.parametrize(
    "name",
    [
        *("CT_small", "MR_small_implicit", "MR_small_bigendian", "MR_small_RLE", "JPEG2000"),
        *("image_dfl", "SC_rgb_small_odd_jpeg", "examples_overlay", "examples_palette"),
    ],
)
def test_elements_are_those_that_pydicom_reads(name):
    path = get_testdata_file(f"{name}.dcm", download=False)
    expected = pydicom.dcmread(path, specific_tags=NAMES)
    found = read_elements(Path(path).read_bytes(), NAMES)
    assert found == pydicom.Dataset(expected)
    assert len(found) >= 3
    assert found.file_meta.TransferSyntaxUID == expected.file_meta.TransferSyntaxUID


@pytest.mark.parametrize("undefined", [False, True])
def test_a_film_of_a_thousand_frames_with_groups_for_each_is_read(undefined):
    groups = []
    for number in range(1000):
        window, group = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = number, 5
        group.FrameVOILUTSequence = [window]
        group.is_undefined_length_sequence_item = undefined
        groups.append(group)
    film = film_bytes(SMALL, frames=1000, PerFrameFunctionalGroupsSequence=groups)
    ds = read_elements(film, ["PerFrameFunctionalGroupsSequence", "PixelData"])
    assert len(ds.PerFrameFunctionalGroupsSequence) == 1000


def test_several_lookup_tables_of_the_largest_size_are_read():
    tables = [item for _ in range(8) for item in lut(np.arange(65536), 0, 16)]
    ds = read_elements(film_bytes(SMALL, VOILUTSequence=tables), ["VOILUTSequence"])
    assert len(ds.VOILUTSequence) == 8
    tables *= 3
    with pytest.raises(FilmError, match="a header of more than 2097152 bytes"):
        read_elements(film_bytes(SMALL, VOILUTSequence=tables), ["VOILUTSequence"])


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", DEFLATED])
def test_what_nobody_asked_for_may_be_large(syntax):
    film = film_bytes(SMALL, syntax=syntax, EncapsulatedDocument=bytes(5_000_000))
    assert read_elements(film, ["Rows"]).Rows == 8


@pytest.mark.parametrize("name", [b"1.2.3", b"1.2.840.10008.1.1"])
def test_a_syntax_that_is_none_is_refused(name):
    film = film_bytes(SMALL).replace(b"1.2.840.10008.1.2.1\0", name.ljust(20, b"\0"))
    with pytest.raises(FilmError, match="a transfer syntax that the Standard does not name"):
        read_elements(film, ["Rows"])


def test_a_header_behind_the_pixels_counts_too():
    film = film_bytes(SMALL)
    large = struct.pack("<HH2sHI", 0x28, 0x3006, b"OW", 0, 3_000_000) + bytes(3_000_000)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + large
    ends = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    behind = struct.pack("<HH2sHI", 0x28, 0x3010, b"SQ", 0, 0xFFFFFFFF) + item + ends
    assert len(pydicom.dcmread(io.BytesIO(film + behind)).VOILUTSequence) == 1
    with pytest.raises(FilmError, match="a header of more than 2097152 bytes"):
        film_of(film + behind)
