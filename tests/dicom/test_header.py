"""Tests of reading a header: within bounds, and nothing private passed on."""

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from chexnet.dicom import FilmError, header, image_ids, read_film
from chexnet.dicom.film import film_of, stored_jpeg
from chexnet.dicom.header import (
    FACTS,
    public_facts,
    read_bytes,
    read_elements,
    read_text,
    read_uid,
    read_value,
)
from tests.dicom.films import (
    BIG,
    DEFLATED,
    IMPLICIT,
    J2K,
    JPEG,
    RAW,
    RLE,
    data_set_start,
    film_bytes,
    lut,
    whole_films,
)

SMALL = np.arange(64, dtype=np.uint8).reshape(8, 8)
NAMES = ["Rows", "Columns", "BitsAllocated", "WindowCenter", "VOILUTSequence", "PixelData"]


def facts(**elements):
    ds, _ = read_elements(film_bytes(SMALL, **elements))
    return public_facts([read_text(ds, keyword) for keyword in FACTS], 8, 8)


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("51", 51),  # RSNA
        ("051Y", 51),  # the Standard
        ("051y ", 51),
        ("000Y", 0),
        ("023M", 1),
        ("024M", 2),
        ("051W", 0),
        ("053W", 1),
        ("364D", 0),
        ("120", 120),
        ("121", None),
        ("155", None),  # in RSNA's table
        ("", None),
        (None, None),
        ("-5", None),
        ("51 years", None),
        ("Y051", None),
        ("19330221", None),
    ],
)
def test_an_age_is_in_whole_years_whatever_its_unit(text, years):
    assert facts(PatientAge=text)["age"] == years


def test_views_and_sexes():
    """Only views and sexes that the standard knows are passed on."""
    assert facts(ViewPosition=" ap ", PatientSex="m", PatientAge="7") == {
        "view": "AP",
        "sex": "M",
        "age": 7,
        "rows": 8,
        "columns": 8,
    }
    unknown = facts(ViewPosition="Smith^John", PatientSex="Smith")
    assert unknown["view"] is None and unknown["sex"] is None


def test_the_transfer_syntax_is_the_one_that_pydicom_finds():
    for film in whole_films():
        ds = pydicom.dcmread(io.BytesIO(film))
        assert ds.file_meta.TransferSyntaxUID == read_elements(film)[1].UID


def test_no_group_length_or_syntax():
    """A file without group length or syntax is read as far as it goes."""
    plain = Path(get_testdata_file("no_meta_group_length.dcm", download=False)).read_bytes()
    missing = Path(get_testdata_file("meta_missing_tsyntax.dcm", download=False)).read_bytes()
    assert read_elements(plain)[1].UID == IMPLICIT
    with pytest.raises(FilmError, match="its header names no transfer syntax"):
        read_elements(missing)
    with pytest.raises(FilmError, match="not a DICOM, PNG or JPG file"):
        read_elements(b"a letter to the editor" * 20)


@pytest.mark.parametrize("name", [b"1.2.3", b"1.2.840.10008.1.1"])
def test_an_unknown_transfer_syntax_is_refused(name):
    film = film_bytes(SMALL).replace(b"1.2.840.10008.1.2.1\0", name.ljust(20, b"\0"))
    with pytest.raises(FilmError, match="unknown transfer syntax"):
        read_elements(film)


@pytest.mark.parametrize(
    "name",
    [
        *("CT_small", "MR_small_implicit", "MR_small_bigendian", "MR_small_RLE", "JPEG2000"),
        *("image_dfl", "SC_rgb_small_odd_jpeg", "examples_overlay", "examples_palette"),
    ],
)
def test_values_are_those_that_pydicom_reads(name):
    path = get_testdata_file(f"{name}.dcm", download=False)
    expected = pydicom.dcmread(path)
    found, _ = read_elements(Path(path).read_bytes())
    present = [name for name in NAMES if name in expected]
    assert len(present) >= 4
    for keyword in present:
        kind = {"WindowCenter": float, "PixelData": bytes}.get(keyword, object)
        value = expected[keyword].value
        value = value[0] if keyword == "WindowCenter" and expected[keyword].VM > 1 else value
        assert read_value(found, keyword, kind) == value


@pytest.mark.parametrize("undefined", [False, True])
def test_thousand_frames(undefined):
    """A film of a thousand frames with groups for each is read."""
    groups = []
    for number in range(1000):
        window, group = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = number, 5
        group.FrameVOILUTSequence = [window]
        group.is_undefined_length_sequence_item = undefined
        groups.append(group)
    film = film_bytes(SMALL, frames=1000, PerFrameFunctionalGroupsSequence=groups)
    ds, _ = read_elements(film)
    assert len(ds.PerFrameFunctionalGroupsSequence) == 1000
    assert (read_value(ds, "WindowCenter", float), ds.WindowWidth) == (0, 5)


def test_a_value_is_of_one_kind_or_missing_and_never_too_large(monkeypatch):
    film = film_bytes(SMALL, WindowCenter=[3, 4], WindowWidth=[], RescaleSlope="1e400")
    ds, _ = read_elements(film)
    assert read_value(ds, "WindowCenter", float) == 3
    assert read_value(ds, "Rows", float) == 8
    assert read_value(ds, "WindowWidth", float) is None
    assert read_value(ds, "RescaleIntercept", float) is None
    for keyword, kind in (("Rows", str), ("Rows", pydicom.Dataset)):
        with pytest.raises(FilmError, match=f"{keyword}: expected one value of type"):
            read_value(ds, keyword, kind)
    with pytest.raises(FilmError, match="WindowCenter: 2 values; expected one"):
        read_value(ds, "WindowCenter", int)
    monkeypatch.setitem(header.MAX_BYTES, bytes, 63)
    with pytest.raises(FilmError, match="PixelData: more than 63 bytes"):
        read_value(ds, "PixelData", bytes)
    with pytest.raises(FilmError, match="RescaleSlope: expected a finite number"):
        read_value(ds, "RescaleSlope", float)


def test_several_lookup_tables_of_the_largest_size_are_read():
    tables = [item for _ in range(8) for item in lut(np.arange(65536), 0, 16)]
    ds, _ = read_elements(film_bytes(SMALL, VOILUTSequence=tables))
    assert len(read_value(ds, "VOILUTSequence", pydicom.Dataset).LUTData) == 131072
    ds, _ = read_elements(film_bytes(SMALL, VOILUTSequence=tables * 3))
    with pytest.raises(FilmError, match="VOILUTSequence: more than 2097152 bytes"):
        read_value(ds, "VOILUTSequence", pydicom.Dataset)


@pytest.mark.parametrize("syntax", [RAW, DEFLATED])
def test_what_nobody_asked_for_may_be_large(syntax):
    film = film_bytes(SMALL, syntax=syntax, EncapsulatedDocument=bytes(5_000_000))
    assert read_elements(film)[0].Rows == 8


@pytest.mark.parametrize("syntax", [RAW, IMPLICIT, BIG, DEFLATED, JPEG, J2K, RLE])
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b" ", b"\xfc\xff\xfc\xffOB\0\0\2\0\0\0\0\0"])
def test_what_fills_a_file_behind_its_pixels_is_not_read(syntax, fill):
    film = film_bytes(SMALL, syntax=syntax)
    pixels = film_of(film).pixels
    for count in (1, 2, 3, 7, 8, 9, 11, 2048, 1_000_000 // len(fill)):
        filled = film_of(film + fill * count)
        assert np.array_equal(filled.pixels, pixels) and filled.remarks == ()
    assert (stored_jpeg(film + fill * 100) is None) == (syntax != JPEG)


def meta_information(film):
    """The group 2 of a film of ours."""
    return film[132 : data_set_start(film)]


@pytest.mark.parametrize("syntax", [RAW, IMPLICIT, BIG, DEFLATED, JPEG, J2K, RLE])
def test_no_preamble(tmp_path, syntax):
    """A film whose file begins with its meta information is read."""
    film = film_bytes(SMALL, syntax=syntax)
    (tmp_path / "film").write_bytes(film[132:])
    read = read_film(tmp_path / "film")
    assert np.array_equal(read.pixels, film_of(film).pixels)
    assert read.header == film_of(film).header
    assert read.remarks == (f"no DICOM preamble; read as {pydicom.uid.UID(syntax).name}",)
    uid = pydicom.dcmread(io.BytesIO(film)).SOPInstanceUID
    assert read_uid(tmp_path / "film") == uid
    assert image_ids(tmp_path, "uid") == {"film": uid}


@pytest.mark.parametrize("syntax", [RAW, IMPLICIT, BIG])
def test_a_film_that_is_nothing_but_its_data_set_is_read(tmp_path, syntax):
    film = film_bytes(SMALL, syntax=syntax)
    (tmp_path / "film").write_bytes(film[data_set_start(film) :])
    read = read_film(tmp_path / "film")
    assert np.array_equal(read.pixels, SMALL)
    assert read.header["view"] == "PA"
    assert read.remarks == (f"no DICOM preamble; read as {pydicom.uid.UID(syntax).name}",)
    assert read_uid(tmp_path / "film") == pydicom.dcmread(io.BytesIO(film)).SOPInstanceUID


def test_compressed_pixels_without_description():
    """Compressed pixels that nothing describes are not taken for plain ones."""
    film = film_bytes(SMALL, syntax=JPEG)
    with pytest.raises(FilmError, match="its pixels are compressed; expected Explicit VR"):
        film_of(film[data_set_start(film) :])


@pytest.mark.parametrize(
    "data",
    [
        b"\x08\0\x16\0 a text that begins like one",
        b"\x08\0\x16\0\x10\0\0\0" + b"x" * 16 + b"\x02\0\x01\0" + bytes(100),
        b"\x02\0\x99\0UL" + bytes(100),
        b"\0" * 1000,
        b"DICM" + bytes(1000),
        bytes(132) + b"DICM" + bytes(100),
    ],
)
def test_a_file_that_only_begins_like_one_is_none(data):
    with pytest.raises(FilmError, match=r"^not a DICOM, PNG or JPG file$"):
        film_of(data)


@pytest.mark.parametrize("syntax", [RAW, IMPLICIT, BIG, DEFLATED, JPEG, J2K, RLE])
def test_second_preamble(tmp_path, syntax):
    """A second preamble or meta information is that of the data."""
    film, other = film_bytes(SMALL, syntax=syntax), film_bytes(SMALL)
    start = data_set_start(film)
    for name, twice in {
        "preamble": other[: data_set_start(other)] + film,
        "thrice": film[:start] + other[: data_set_start(other)] + film,
        "meta": film[:132] + meta_information(other) + film[132:],
    }.items():
        (tmp_path / name).write_bytes(twice)
        read = read_film(tmp_path / name)
        assert np.array_equal(read.pixels, film_of(film).pixels)
        assert read.original["transfer_syntax"] == pydicom.uid.UID(syntax).name
        assert read.remarks == ()
        assert read_uid(tmp_path / name) == pydicom.dcmread(io.BytesIO(film)).SOPInstanceUID


def test_a_large_table_behind_the_pixels_counts_too():
    film = film_bytes(SMALL)
    table = struct.pack("<HH2sHHHH", 0x28, 0x3002, b"US", 6, 0, 0, 16)
    table += struct.pack("<HH2sHI", 0x28, 0x3006, b"OW", 0, 3_000_000) + bytes(3_000_000)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + table
    ends = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    behind = struct.pack("<HH2sHI", 0x28, 0x3010, b"SQ", 0, 0xFFFFFFFF) + item + ends
    assert len(pydicom.dcmread(io.BytesIO(film + behind)).VOILUTSequence) == 1
    with pytest.raises(FilmError, match="LUTData: more than 2097152 bytes"):
        film_of(film + behind)


def test_what_is_not_a_plain_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(bytes(100))
    monkeypatch.setattr(header, "MAX_FILE", 99)
    for name, reason in (("empty", "empty file"), ("large", "100 bytes"), ("", "not a regular")):
        with pytest.raises(FilmError, match=reason):
            read_bytes(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def test_deflated_data_are_measured_while_they_are_inflated(monkeypatch):
    film = film_bytes(SMALL, syntax=DEFLATED)
    assert np.array_equal(film_of(film).pixels, SMALL)
    start = data_set_start(film)
    with pytest.raises(FilmError, match="its deflated data cannot be inflated"):
        film_of(film[:start] + b"\xff" * 100)
    monkeypatch.setattr(header, "MAX_FILE", 300)
    assert len(film) - start < 600
    with pytest.raises(FilmError, match="inflates to more than 300 bytes"):
        film_of(film)
