"""Tests of the bytes of a DICOM file."""

import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from benchmarks.fuzz_convert import IMPLICIT, RAW, film_bytes, whole_films
from chexnet.dicom import FilmError, header
from chexnet.dicom.header import elements, file_meta, public_facts, read_bytes


def facts(**given):
    return public_facts({"rows": 4, "columns": 5, **given})


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
        ("155", None),  # stands in RSNA's table
        ("", None),
        (None, None),
        ("-5", None),
        ("51 years", None),
        ("Y051", None),
        ("٥١", None),
        ("19330221", None),
    ],
)
def test_an_age_is_in_whole_years_whatever_its_unit(text, years):
    assert facts(age=text)["age"] == years


def test_only_views_and_sexes_that_the_standard_knows_are_passed_on():
    assert facts(view="PA", sex="F", age="7") == {
        "view": "PA",
        "sex": "F",
        "age": 7,
        "rows": 4,
        "columns": 5,
    }
    assert facts(view=" ap ", sex="m\0")["view"] == "AP"
    assert facts(view="Smith^John", sex="Smith") == facts()


def test_transfer_syntax_and_start_are_those_that_pydicom_finds():
    for film in whole_films():
        ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(film))
        syntax, start = file_meta(film)
        assert syntax == ds.file_meta.TransferSyntaxUID
        assert start == 144 + ds.file_meta.FileMetaInformationGroupLength


def test_a_file_without_group_length_or_syntax_is_read_as_far_as_it_goes():
    plain = Path(get_testdata_file("no_meta_group_length.dcm", download=False)).read_bytes()
    missing = Path(get_testdata_file("meta_missing_tsyntax.dcm", download=False)).read_bytes()
    assert file_meta(plain)[0] == IMPLICIT
    assert file_meta(missing)[0] == ""
    with pytest.raises(FilmError, match="not a DICOM file"):
        file_meta(b"a letter to the editor" * 20)


def test_elements_are_those_that_pydicom_finds(rsna_dir):
    path = sorted((rsna_dir / "stage_2_train_images").iterdir())[0]
    data, ds = path.read_bytes(), pydicom.dcmread(path)
    found = list(elements(data, file_meta(data)[1]))
    assert [tag for tag, _, _ in found] == [int(element.tag) for element in ds]
    values = {tag: data[offset : offset + length] for tag, offset, length in found}
    assert values[0x00080060] == b"CR"
    assert values[0x00280010] == (1024).to_bytes(2, "little")


def test_elements_end_where_the_file_does_not_make_sense():
    film = film_bytes(np.zeros((4, 4), np.uint8), syntax=RAW)
    start = file_meta(film)[1]
    assert list(elements(film, start))[-1][0] == header.PIXEL_DATA
    assert list(elements(film[: start + 4], start)) == []
    assert list(elements(film[:start] + b"\x08\x00\x05\x00??" + bytes(20), start)) == []


def test_what_is_no_plain_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(bytes(100))
    monkeypatch.setattr(header, "MAX_FILE", 99)
    for name, reason in (("empty", "empty file"), ("large", "100 bytes"), ("", "not a regular")):
        with pytest.raises(FilmError, match=reason):
            read_bytes(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def test_deflated_data_are_measured_while_they_are_inflated(monkeypatch):
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = deflate.compress(bytes(5_000_000)) + deflate.flush()
    assert header.inflated(b"meta" + packed, 4) == bytes(5_000_000)
    monkeypatch.setattr(header, "MAX_FILE", 4_999_999)
    with pytest.raises(FilmError, match="inflates to more than 4999999 bytes"):
        header.inflated(packed, 0)
    with pytest.raises(FilmError, match="should be deflated"):
        header.inflated(b"\xff" * 100, 0)
