"""Tests of one film's way from stored values to grey pixels, on pydicom's files and made ones."""

import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing, get_decoder

from chexnet.dicom import FilmError, convert_folder, read_film
from chexnet.dicom.film import film_of, stored_jpeg
from tests.dicom.damaged import for_damaged_films
from tests.dicom.films import (
    BIG,
    DEFLATED,
    IMPLICIT,
    J2K,
    JPEG,
    RAW,
    RLE,
    SECRET,
    bombs,
    film_bytes,
    jpeg_bytes,
    lut,
    rle_film,
)

RAMP = np.arange(48 * 64).reshape(48, 64)
ALL_16_BITS = np.arange(65536).reshape(256, 256).astype(np.uint16)
SHORT_TABLE, HALF_DESCRIPTOR = pydicom.Dataset(), pydicom.Dataset()
SHORT_TABLE.add_new("LUTDescriptor", "US", [256, 0, 8])
HALF_DESCRIPTOR.add_new("LUTDescriptor", "US", [200, 0])
for item in (SHORT_TABLE, HALF_DESCRIPTOR):
    item.add_new("LUTData", "US", list(range(200)))


def fixture(name):
    """One of pydicom's own files: its path and what it holds."""
    path = Path(get_testdata_file(name, download=False))
    return path, pydicom.dcmread(path)


def shades(values, low, high):
    """By hand: ``low`` becomes 0, ``high`` 255."""
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def test_a_film_of_8_bits_without_lut_or_window_passes_unchanged():
    path, ds = fixture("image_dfl.dcm")
    assert ds.file_meta.TransferSyntaxUID == DEFLATED
    assert (ds.PhotometricInterpretation, ds.BitsStored) == ("MONOCHROME2", 8)
    assert "WindowCenter" not in ds and "RescaleSlope" not in ds
    film = read_film(path)
    assert film.pixels.dtype == np.uint8
    assert np.array_equal(film.pixels, ds.pixel_array)
    assert film.header == {"view": None, "sex": None, "age": None, "rows": 512, "columns": 512}
    assert film.original == {
        "transfer_syntax": "Deflated Explicit VR Little Endian",
        "photometric": "MONOCHROME2",
        "bits": 8,
        "signed": False,
        "frames": 1,
        "steps": (),
    }


def test_many_bits_without_window():
    """More bits without window are spread from lowest to highest."""
    path, ds = fixture("CT_small.dcm")
    stored = ds.pixel_array.astype(float)
    assert (stored.min(), stored.max(), ds.BitsStored) == (128, 2191, 16)
    assert (ds.RescaleSlope, ds.RescaleIntercept) == (1, -1024)
    film = read_film(path)
    assert np.array_equal(film.pixels, shades(stored, 128, 2191))
    assert (film.pixels.min(), film.pixels.max()) == (0, 255)
    assert film.original["steps"] == ("spread from its lowest to its highest value (-896 to 1167)",)
    assert (film.header["sex"], film.header["age"]) == ("O", 0)


def test_the_first_of_several_windows_is_applied():
    path, ds = fixture("examples_overlay.dcm")
    assert (ds.WindowCenter, ds.WindowWidth, ds.BitsStored) == ([450, 200], [790, 443], 12)
    stored = ds.pixel_array
    film = read_film(path)
    assert film.original["steps"] == ("window 450/790 applied",)
    # PS3.3 C.11.2.1.2.1 by hand: ((450 - 449.5) / 789 + 0.5) * 255 = 127.66
    assert set(film.pixels[stored == 450]) == {128}
    assert film.pixels[stored <= 55].max() == 0
    assert film.pixels[stored > 844].min() == 255
    assert np.array_equal(film.pixels, shades(apply_windowing(stored, ds), 0, 4095))


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("MR_small_implicit.dcm", IMPLICIT),
        ("MR_small_bigendian.dcm", BIG),
        ("MR_small_RLE.dcm", RLE),
        ("MR_small_jp2klossless.dcm", J2K),
        ("MR_small_padded.dcm", RAW),
    ],
)
def test_one_film_in_another_syntax_gives_the_same_pixels(name, syntax):
    path, ds = fixture(name)
    plain, of_plain = fixture("MR_small.dcm")
    assert ds.file_meta.TransferSyntaxUID == syntax
    assert of_plain.file_meta.TransferSyntaxUID == RAW
    assert (of_plain.WindowCenter, of_plain.WindowWidth) == (600, 1600)
    pixels = read_film(path).pixels
    assert np.array_equal(pixels, read_film(plain).pixels)
    expected = apply_windowing(of_plain.pixel_array, of_plain)
    assert np.array_equal(pixels, shades(expected, -32768, 32767))


@pytest.mark.parametrize("bits", [2, 4, 7, 8, 10, 12, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_two_to_sixteen_bits_signed_or_not_fill_the_grey_scale(bits, signed):
    stored = RAMP % 2**bits - (2 ** (bits - 1) if signed else 0)
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    data = film_bytes(stored.astype(kind), BitsStored=bits, HighBit=bits - 1)
    film = film_of(data)
    assert np.array_equal(film.pixels, shades(stored, stored.min(), stored.max()))
    assert (film.original["bits"], film.original["signed"]) == (bits, signed)
    assert bool(film.original["steps"]) == (signed or bits != 8)


def test_few_bits_keep_the_meaning_of_their_full_range():
    dim = (RAMP % 100).astype(np.uint8)
    assert np.array_equal(film_of(film_bytes(dim)).pixels, dim)
    four = (RAMP % 8).astype(np.uint8)
    pixels = film_of(film_bytes(four, BitsStored=4, HighBit=3)).pixels
    assert np.array_equal(pixels, four * 17)  # 15 would be white


def test_monochrome1_is_inverted_so_that_air_is_black():
    stored = (RAMP % 256).astype(np.uint8)
    film = film_of(film_bytes(stored, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(film.pixels, 255 - stored)
    assert film.original["steps"] == ("inverted (MONOCHROME1)",)
    deep = film_of(film_bytes(ALL_16_BITS, PhotometricInterpretation="MONOCHROME1"))
    assert (deep.pixels[0, 0], deep.pixels[-1, -1]) == (255, 0)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(900, 400), (900.5, 1), (0, 4096), (-50, 3000.5)])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -100), (-2, 3000)])
def test_rescale_and_window_are_those_of_pydicom(function, centre, width, slope, intercept):
    stored = (RAMP % 4096).astype(np.uint16)
    data = film_bytes(
        stored,
        **{"BitsStored": 12, "HighBit": 11, "VOILUTFunction": function},
        **{"WindowCenter": centre, "WindowWidth": width},
        **{"RescaleSlope": slope, "RescaleIntercept": intercept},
    )
    ds = pydicom.dcmread(io.BytesIO(data))
    with np.errstate(over="ignore"):
        expected = apply_windowing(apply_modality_lut(stored, ds), ds)
    # Its output runs from what 0 is rescaled to, to what 4095 is.
    floor, ceiling = intercept, 4095 * slope + intercept
    ours = film_of(data).pixels.astype(int)
    # One shade where a value falls between two and the last bit of a float decides.
    assert np.abs(ours - shades(expected, floor, ceiling)).max() <= 1
    assert len(np.unique(ours)) >= 2


def test_a_window_of_width_one_is_a_threshold():
    stored = (RAMP % 256).astype(np.uint8)
    pixels = film_of(film_bytes(stored, WindowCenter=100, WindowWidth=1)).pixels
    assert np.array_equal(pixels, np.where(stored > 99.5, 255, 0))


def test_window_that_changes_nothing():
    """A window that changes nothing leaves the JPG of the file."""
    stored = (RAMP % 256).astype(np.uint8)
    whole = {"WindowCenter": 128, "WindowWidth": 256, "RescaleSlope": 1, "RescaleIntercept": 0}
    film = film_of(film_bytes(stored, syntax=JPEG, **whole))
    assert film.jpg == jpeg_bytes(stored)
    assert film.original["steps"] == ()
    assert film_of(film_bytes(stored, syntax=JPEG, **(whole | {"WindowWidth": 250}))).jpg is None
    # Seven bits of eight: the JPEG in the file has the eighth.
    seven = film_of(film_bytes(stored, syntax=JPEG, BitsStored=7, HighBit=6, **whole))
    assert seven.jpg is None and seven.pixels.max() < 128


def test_a_modality_lut_comes_before_the_window():
    stored = (RAMP % 256).astype(np.uint8)
    table = np.arange(256) ** 2
    data = film_bytes(
        stored, ModalityLUTSequence=lut(table, 0, 16), WindowCenter=32768, WindowWidth=65536
    )
    film = film_of(data)
    values = table[stored].astype(float)
    assert np.array_equal(film.pixels, np.rint(np.clip(values / 65535, 0, 1) * 255))
    assert film.original["steps"] == ("modality LUT applied", "window 32768/65536 applied")


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_voi_lut_and_window(bits):
    """A VOI LUT is preferred to a window and clips at its ends."""
    stored = (RAMP % 4096).astype(np.uint16)
    first, entries = 500, 2000
    table = (np.arange(entries) * (2**bits - 1)) // (entries - 1)
    data = film_bytes(
        stored,
        **{"BitsStored": 12, "HighBit": 11, "WindowCenter": 5, "WindowWidth": 5},
        VOILUTSequence=lut(table, first, bits),
    )
    expected = table[np.clip(stored.astype(int) - first, 0, entries - 1)]
    film = film_of(data)
    assert np.array_equal(film.pixels, shades(expected, 0, 2**bits - 1))
    assert film.original["steps"] == ("VOI LUT applied",)


def test_a_lut_of_65536_entries_is_told_by_a_zero():
    data = film_bytes(ALL_16_BITS, VOILUTSequence=lut(np.arange(65536)[::-1], 0, 16))
    assert np.array_equal(film_of(data).pixels, shades(65535 - ALL_16_BITS.astype(int), 0, 65535))


def test_functional_groups():
    """Steps of an enhanced film are found in its functional groups."""
    stored = (RAMP % 4096).astype(np.uint16)
    window, groups = pydicom.Dataset(), pydicom.Dataset()
    window.WindowCenter, window.WindowWidth = 1000, 500
    groups.FrameVOILUTSequence = [window]
    enhanced = film_bytes(stored, SharedFunctionalGroupsSequence=[groups])
    plain = film_bytes(stored, WindowCenter=1000, WindowWidth=500)
    assert np.array_equal(film_of(enhanced).pixels, film_of(plain).pixels)


def test_padding_is_black_and_does_not_stretch_the_scale():
    stored = (1000 + RAMP % 500).astype(np.int16)
    stored[:5] = -2000
    film = film_of(film_bytes(stored, PixelPaddingValue=-2000))
    assert np.array_equal(film.pixels[5:], shades(stored[5:], 1000, 1499))
    assert film.pixels[:5].max() == 0
    inverted = film_of(
        film_bytes(stored, PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1")
    )
    assert inverted.pixels[:5].max() == 0
    assert np.array_equal(inverted.pixels[5:], 255 - film.pixels[5:])
    assert inverted.original["steps"][-1] == "padding made black"


def test_padding():
    """A range of padding is black and a film of padding is a black film."""
    stored = (RAMP % 256).astype(np.uint8)
    film = film_of(film_bytes(stored, PixelPaddingValue=250, PixelPaddingRangeLimit=255))
    assert np.array_equal(film.pixels, np.where(stored >= 250, 0, stored))
    flat = film_of(film_bytes(np.full((8, 8), 77, np.int16), PixelPaddingValue=77))
    assert flat.pixels.max() == 0


def test_of_several_frames_the_first_is_taken_and_said_so():
    path, ds = fixture("examples_ybr_color.dcm")
    assert ds.NumberOfFrames == 30
    film = read_film(path)
    assert film.pixels.shape == (240, 320)
    assert film.original["steps"] == ("first of 30 frames", "color made gray")
    first = (RAMP % 256).astype(np.uint8)
    both = film_bytes(first, frames=2, PixelData=first.tobytes() + (255 - first).tobytes())
    assert np.array_equal(film_of(both).pixels, first)
    assert film_of(both).original["frames"] == 2


def test_colour_becomes_grey_and_grey_stored_as_colour_stays():
    path, ds = fixture("SC_rgb_small_odd.dcm")
    assert (ds.PhotometricInterpretation, ds.pixel_array.shape) == ("RGB", (3, 3, 3))
    luma = ds.pixel_array @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    film = read_film(path)
    assert np.abs(film.pixels - luma).max() <= 0.51
    assert film.original["steps"] == ("color made gray",)
    grey = (RAMP % 256).astype(np.uint8)
    assert np.array_equal(film_of(film_bytes(np.stack([grey] * 3, -1))).pixels, grey)


def test_a_palette_is_looked_up_before_it_becomes_grey():
    path, ds = fixture("examples_palette.dcm")
    assert ds.PhotometricInterpretation == "PALETTE COLOR"
    colours = pydicom.pixels.apply_color_lut(ds.pixel_array, ds)
    expected = np.asarray(Image.fromarray((colours >> 8).astype(np.uint8)).convert("L"))
    assert np.abs(read_film(path).pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("README.txt", "not a DICOM, PNG or JPG file"),
        ("no_meta.dcm", "not a DICOM, PNG or JPG file"),
        ("meta_missing_tsyntax.dcm", "its header names no transfer syntax"),
        ("test-SR.dcm", "no pixel data"),
        ("waveform_ecg.dcm", "no pixel data"),
        ("MR_truncated.dcm", "truncated: 8130 bytes do not fill 64 x 64 pixels"),
        ("rtdose_1frame.dcm", "32 bits in 32 per value; expected 2 to 16 in 8 or 16"),
        ("liver_1frame.dcm", "1 bits in 1 per value"),
        ("SC_rgb_rle_16bit.dcm", "color of 16 bits; expected 8"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_file_and_reason(name, reason):
    path = Path(get_testdata_file(name, download=False))
    with pytest.raises(FilmError) as caught:
        read_film(path)
    assert str(caught.value).startswith(f"{path}: {reason}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Rows": 0}, "0 x 64 pixels"),
        ({"Rows": 96}, "truncated: 3072 bytes do not fill 96 x 64 pixels"),
        ({"SamplesPerPixel": 3}, "3 values per pixel do not go with MONOCHROME2"),
        (
            {"PhotometricInterpretation": SECRET},
            "photometric interpretation: expected MONOCHROME1, ",
        ),
        ({"BitsStored": 9}, "9 bits in 8"),
        (
            {"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": SECRET},
            "VOI LUT function: expected LINEAR, ",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "rescale slope 0 leaves no picture"),
        ({"VOILUTSequence": [SHORT_TABLE]}, "a lookup table of 200 entries; expected 256"),
        ({"VOILUTSequence": [HALF_DESCRIPTOR]}, "a lookup table without a descriptor"),
        ({"PixelPaddingValue": [0, 5]}, "PixelPaddingValue: 2 values; expected one"),
        ({"NumberOfFrames": -3}, "-3 frames"),
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense_is_refused_with_the_number(change, reason):
    film = film_bytes((RAMP % 256).astype(np.uint8), **change)
    with pytest.raises(FilmError) as caught:
        film_of(film)
    assert str(caught.value).startswith(reason)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_a_syntax_without_a_decoder_is_refused_by_name(name):
    path, ds = fixture(name)
    syntax = ds.file_meta.TransferSyntaxUID
    if get_decoder(syntax).is_available:
        pytest.skip(f"a decoder for {syntax.name} is installed here")
    with pytest.raises(FilmError, match=r"no decoder for JPEG.* is installed; pip install py"):
        read_film(path)


@pytest.mark.parametrize("syntax", [JPEG, RAW])
def test_truncated_film(syntax):
    """A film cut anywhere is refused and told from one without pixels."""
    film = film_bytes((RAMP % 256).astype(np.uint8), syntax=syntax)
    pixels = film.rindex(b"\xe0\x7f\x10\x00") + 12
    for length in range(150, len(film) - 10, 41):
        with pytest.raises(FilmError) as caught:
            film_of(film[:length])
        if length >= pixels:
            assert str(caught.value).startswith("truncated")
        else:
            assert str(caught.value) in (
                *("no pixel data", "its header names no transfer syntax"),
                *("unknown transfer syntax", "truncated: its data set has no end"),
            )


BOMBS = {
    "many pixels": "65535 x 65535 pixels of 1 values; expected 1 to 36000000 values",
    "many pixels, JPEG": "65535 x 65535 pixels of 1 values; expected 1 to 36000000 values",
    "a larger JPEG": "its JPEG is 65535 x 65535; expected 8 x 8 pixels",
    "a larger JPEG 2000": "damaged: its JPEG 2000 stream cannot be read",
    "many pixels, JPEG 2000": "60000 x 60000 pixels of 1 values; expected 1 to 36000000 values",
    "many scans": "its JPEG has 3006 scans; expected at most 32",
    "many fragments": "compressed pixels in more than 100000 parts",
    "deflated zeros": "inflates to more than 268435456 bytes",
    "deflated elements": "its header takes more than 200000 reads",
    "deflated items without a length": "damaged: its header cannot be read",
    "many elements": "its header takes more than 200000 reads",
    "much meta information": "its header takes more than 200000 reads",
    "RLE that unpacks to more": "its RLE unpacks to more than 128 bytes",
    "RLE from beyond its end": "damaged: its RLE segments are not where it says",
}
# Refused before the value is converted, after the few pixels have been decoded.
LARGE_VALUES = {
    "deflated items": "VOILUTSequence: more than 2097152 bytes",
}


def refusals(names):
    made, reasons = bombs(), {}
    for name in names:
        with pytest.raises(FilmError) as caught:
            film_of(made[name])
        reasons[name] = str(caught.value)
    return reasons


def test_bombs_are_refused():
    assert refusals(BOMBS | LARGE_VALUES) == BOMBS | LARGE_VALUES
    read = {"many frames", "a long window"}  # a film is first; the window is left alone
    assert bombs().keys() - BOMBS.keys() - LARGE_VALUES.keys() == read
    remarks = film_of(bombs()["a long window"]).remarks
    assert remarks[0] == "read without a window (WindowCenter: more than 65536 bytes)"


def test_bombs_of_pixels_are_refused_before_they_are_decoded(monkeypatch):
    def never(*_, **__):
        raise AssertionError("decoded")

    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", never)
    assert refusals(BOMBS) == BOMBS


def raise_key_error(*_, **__):
    raise KeyError("a mistake of ours")


@pytest.mark.parametrize(
    "name",
    [
        *("film.read_elements", "film.read_pixel_format", "film.first_frame", "film.decode"),
        *("film.public_facts", "film.apply_display_pipeline", "display.find_padding"),
        *("display.apply_modality_lut", "display.apply_voi_lut", "display.read_table"),
        *("header.read_value", "pixels.check_jpeg", "film.grey_baseline", "film.find_flat"),
        "film.find_contradictions",
    ],
)
def test_an_error_of_our_own_code_surfaces(name, monkeypatch, tmp_path):
    stored = (RAMP % 256).astype(np.uint8)
    curve = lut(np.arange(256), 0, 8)
    more = {} if name == "film.grey_baseline" else {"VOILUTSequence": curve}
    film = tmp_path / "films" / "film.dcm"
    film.parent.mkdir()
    film.write_bytes(film_bytes(stored, syntax=JPEG, **more))
    monkeypatch.setattr(f"chexnet.dicom.{name}", raise_key_error)
    with pytest.raises(KeyError, match="a mistake of ours"):
        read_film(film)
    with pytest.raises(KeyError, match="a mistake of ours"):
        convert_folder(film.parent, tmp_path / "jpg", workers=1, progress=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("header.read_dataset", "damaged: its file meta information cannot be read"),
        ("pixels.generate_fragments", "truncated or damaged: its compressed pixels have no whole"),
        ("pixels.encapsulate", "truncated, damaged, or beyond its decoder"),
    ],
)
def test_an_error_of_a_library_is_that_of_a_damaged_film(name, reason, monkeypatch):
    monkeypatch.setattr(f"chexnet.dicom.{name}", raise_key_error)
    with pytest.raises(FilmError, match=f"^{reason}"):
        film_of(film_bytes((RAMP % 256).astype(np.uint8), syntax=JPEG))


def test_a_value_that_pydicom_cannot_convert_is_named():
    film = film_bytes((RAMP % 256).astype(np.uint8), BitsStored=8)
    damaged = film.replace(b"\x28\0\x01\x01US", b"\x28\0\x01\x01XY")
    assert damaged != film
    with pytest.raises(NotImplementedError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _ = pydicom.dcmread(io.BytesIO(damaged)).BitsStored
    with pytest.raises(FilmError, match=r"^damaged: BitsStored cannot be read$"):
        film_of(damaged)


def test_a_damaged_vr_is_not_copied_unseen():
    film = film_bytes(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), syntax=JPEG)
    assert stored_jpeg(film) is not None
    damaged = film.replace(b"\x28\0\x03\x01US", b"\x28\0\x03\x01QS")
    assert damaged != film and stored_jpeg(damaged) is None
    with pytest.raises(FilmError, match="damaged: PixelRepresentation cannot be read"):
        film_of(damaged)


def test_fuzzer(tmp_path):
    """The fuzzer keeps its bounds of time and memory and its seed."""
    run = [sys.executable, "-m", "benchmarks.fuzz_convert", "--films", "60"]
    root = Path(__file__).parents[2]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    films = [[], []]
    for kept in films:
        for_damaged_films(30, 5, kept.append)
    assert films[0] == films[1]


def test_rle_bytes_that_say_nothing_are_stepped_over():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    coded = b"".join(b"\x80" + bytes([0, value]) for value in pixels.ravel())
    film = rle_film(pixels, [64], coded)
    assert np.array_equal(pydicom.dcmread(io.BytesIO(film)).pixel_array, pixels)
    assert np.array_equal(film_of(film).pixels, pixels)


def test_nothing_private_is_warned_of_logged_or_raised(caplog):
    film = film_bytes((RAMP % 256).astype(np.uint8))
    # Values that pydicom complains of by quoting them.
    for keyword, length in (("051Y", 4), ("PA", 2), ("CS", 2)):
        assert film.count(keyword.encode()[:length])
    odd = film.replace(b"051Y", b"J^Do").replace(b"AS\x04\0", b"UI\x04\0")
    caplog.set_level(logging.DEBUG)
    level = logging.getLogger("pydicom").level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = film_of(odd)
        with pytest.raises(FilmError) as error:
            film_of(odd.replace(b"US\x02\0", b"XY\x02\0"))
    assert seen.header["age"] is None
    assert not caught and not caplog.records
    assert error.value.__suppress_context__
    assert "J^Do" not in f"{seen.header} {seen.original} {error.value}"
    assert logging.getLogger("pydicom").level == level


def test_a_file_that_is_not_there_is_a_plain_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_film(tmp_path / "none.dcm")


def test_zeros_in_the_middle_of_a_jpeg_2000_film_are_said():
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64), np.uint16)
    stream = jpeg_bytes(noise, codec="JPEG2000", no_jp2=True)
    half = len(stream) // 2
    gap = stream[:half] + bytes(300) + stream[half + 300 :]
    damaged = film_of(film_bytes(noise, syntax=J2K, PixelData=encapsulate([gap])))
    assert damaged.remarks == ("JPEG 2000 with 256 zeros in a row: parts may be missing",)
    for whole in (noise, np.zeros((64, 64), np.uint16)):
        stream = jpeg_bytes(whole, codec="JPEG2000", no_jp2=True) + bytes(300)
        film = film_of(film_bytes(whole, syntax=J2K, PixelData=encapsulate([stream])))
        assert not any("zeros in a row" in remark for remark in film.remarks)
