"""Lookup tables and windows as devices write them, worked out by hand and beside dcmtk."""

import io
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from PIL import Image

from chexnet.dicom import FilmError
from chexnet.dicom.film import film_of
from tests.dicom.films import BIG, IMPLICIT, RAW, film_bytes

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits once
TWELVE = {"BitsStored": 12, "HighBit": 11}
CURVE = np.rint(4095 / (1 + np.exp(-(np.arange(4096) - 2048) / 500))).astype(int)
XA, RF, CR = (f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("12.1", "12.2", "1"))


def table(count, first, bits, entries, *, vr="US"):
    """A sequence of one table; a descriptor need not say what the entries are."""
    item = pydicom.Dataset()
    signed = vr == "SS"
    item.add_new(
        "LUTDescriptor", vr if signed and first < 0 else "US", [count % 65536, first, bits]
    )
    words = np.asarray(entries).astype("<u2")
    if vr in ("US", "SS"):
        values = words.astype("<i2") if signed else words
        item.add_new("LUTData", vr, [int(value) for value in values])
    else:
        item.add_new("LUTData", vr, words.tobytes())
    return pydicom.Sequence([item])


def packed(entries):
    """8-bit entries two a word, the first one low (PS3.3 C.11.1.1.2)."""
    even = np.append(entries, [0] * (len(entries) % 2)).astype(int)
    return even[::2] + 256 * even[1::2]


def white_at(values, highest):
    return np.rint(np.clip(values / highest, 0, 1) * 255)


def close(data, expected, most=1):
    pixels = film_of(data).pixels.astype(int)
    assert np.abs(pixels - expected).max() <= most, (pixels.min(), pixels.max())


def by_dcmtk(data, folder, *options):
    """The gray picture that dcmj2pnm makes of a film."""
    if not shutil.which("dcmj2pnm"):
        pytest.skip("dcmtk is not installed (apt-get install dcmtk)")
    film, picture = folder / "film.dcm", folder / "film.pgm"
    film.write_bytes(data)
    subprocess.run(["dcmj2pnm", "-q", "+op", *options, film, picture], check=True)
    return np.asarray(Image.open(picture)).astype(int)


@pytest.mark.parametrize(
    ("declared", "used"),
    [(12, 12), (16, 12), (16, 10), (12, 10), (8, 12), (10, 16), (7, 8), (0, 9)],
)
def test_white(declared, used, tmp_path):
    """White is the highest entry that the bits in use can hold."""
    entries = np.rint(CURVE / 4095 * (2**used - 1)).astype(int)
    data = film_bytes(RAMP, **TWELVE, VOILUTSequence=table(4096, 0, declared, entries))
    close(data, white_at(entries[RAMP], 2**used - 1))
    remarks = film_of(data).remarks
    expected = [] if declared == used else [f"VOI LUT of {used} bits, {declared} declared"]
    assert list(remarks) == expected
    close(data, by_dcmtk(data, tmp_path, "+Wl", "1", "+Mv"))


@pytest.mark.parametrize("syntax", [RAW, IMPLICIT, BIG])
@pytest.mark.parametrize("vr", ["US", "SS", "OW"])
@pytest.mark.parametrize("first", [-1000, -1, 0, 7])
def test_first_value_below_zero(first, vr, syntax, tmp_path):
    """The first value mapped may be below zero after the rescale."""
    word = first if vr == "SS" else first % 65536
    # Entry k of the table is k, so value v of the modality becomes v - first.
    data = film_bytes(
        RAMP,
        syntax=syntax,
        **TWELVE,
        RescaleSlope=1,
        RescaleIntercept=first,
        VOILUTSequence=table(4096, word, 12, np.arange(4096), vr=vr),
    )
    if syntax == BIG and vr == "OW":
        data = swapped(data)
    close(data, white_at(RAMP, 4095))
    if vr != "SS":  # dcmtk 3.6.7 takes no signed VR
        close(data, by_dcmtk(data, tmp_path, "+Wl", "1"))


def swapped(data):
    """The LUT Data of a big-endian film in its own byte order; pydicom writes OW as it is."""
    words = np.arange(4096).astype("<u2")
    assert data.count(words.tobytes()) == 1
    return data.replace(words.tobytes(), words.astype(">u2").tobytes())


def test_first_value_above_32767(tmp_path):
    """A first value above 32767 of unsigned values stays unsigned."""
    stored = (40000 + np.arange(4096)).astype(np.uint16).reshape(64, 64)
    entries = np.arange(4096)
    close(film_bytes(stored, VOILUTSequence=table(4096, 40000, 12, entries)), white_at(RAMP, 4095))
    # Also where a rescale moves the lowest value, which no pixel has, below zero.
    below = {"RescaleSlope": 1, "RescaleIntercept": -1}
    data = film_bytes(stored, **below, VOILUTSequence=table(4096, 39999, 12, entries))
    close(data, white_at(RAMP, 4095))


def test_first_value_signed_or_unsigned(tmp_path):
    # -1000 to 64535; 63536 is -2000, by hand: value v of the modality becomes v + 2000.
    """Of two first values that cover some values the signed one counts."""
    stored = np.arange(65536, dtype=np.uint16)[::16].reshape(64, 64)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1000}
    data = film_bytes(stored, **rescale, VOILUTSequence=table(4096, 63536, 12, np.arange(4096)))
    close(data, white_at(stored.astype(int) + 1000, 4095))
    close(data, by_dcmtk(data, tmp_path, "+Wl", "1"))


@pytest.mark.parametrize("first", [33000, 60000])
def test_first_value_high_in_unsigned_values(first, tmp_path):
    """A table that begins high in unsigned values is not a signed one."""
    stored = np.arange(65536, dtype=np.uint16)[::16].reshape(64, 64)
    # By hand: 0 up to the first value, then one more for each 16th.
    data = film_bytes(stored, VOILUTSequence=table(65536, first, 16, np.arange(65536), vr="OW"))
    close(data, white_at(np.maximum(stored.astype(int) - first, 0), 65535))
    close(data, by_dcmtk(data, tmp_path, "+Wl", "1"))


@pytest.mark.parametrize("vr", ["US", "SS", "OW"])
def test_entries_are_unsigned_whatever_their_vr(vr, tmp_path):
    signed = RAMP.astype(np.int16) - 2048
    entries = np.linspace(0, 65535, 4096).astype(int)
    data = film_bytes(signed, **TWELVE, VOILUTSequence=table(4096, -2048 % 65536, 16, entries))
    if vr == "SS":
        data = data.replace(b"\x28\0\x06\x30US", b"\x28\0\x06\x30SS")
    close(data, white_at(RAMP, 4095))
    close(data, by_dcmtk(data, tmp_path, "+Wl", "1"))


@pytest.mark.parametrize("count", [256, 255])
@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_entries_of_8_bits_may_be_two_in_a_word(keyword, vr, count, tmp_path):
    stored = (RAMP % 256).astype(np.uint8)
    entries = (255 - np.arange(256)) ** 2 // 255  # not symmetrical, so that swapped pairs show
    sequence = table(count, 0, 8, packed(entries[:count]), vr=vr)
    data = film_bytes(stored, **{keyword: sequence}, WindowCenter=128, WindowWidth=256)
    expected = entries[np.minimum(stored, count - 1)]
    close(data, expected)
    options = ("+Wl", "1") if keyword == "VOILUTSequence" else ("+Wi", "1")
    close(data, by_dcmtk(data, tmp_path, *options))


def test_table_one_entry_short(tmp_path):
    """Of a table that is one entry short, the last one stands for it."""
    data = film_bytes(RAMP, **TWELVE, VOILUTSequence=table(4096, 0, 12, np.arange(4095)))
    close(data, white_at(np.minimum(RAMP, 4094), 4095))
    close(data, by_dcmtk(data, tmp_path, "+Wl", "1"))
    assert film_of(data).remarks == ("VOI LUT of 4095 entries, 4096 declared",)
    with pytest.raises(FilmError, match="a lookup table of 3000 entries; expected 4096"):
        film_of(film_bytes(RAMP, **TWELVE, VOILUTSequence=table(4096, 0, 12, np.arange(3000))))


def test_table_with_more_entries():
    """Of a table with more entries than it says, the rest is left out."""
    sequence = table(256, 0, 8, [*range(256), *[0] * 4000])
    film = film_of(film_bytes(RAMP, **TWELVE, VOILUTSequence=sequence))
    assert np.array_equal(film.pixels, np.minimum(RAMP, 255))


@pytest.mark.parametrize("relation", ["LOG", "DISP", "LIN", None])
@pytest.mark.parametrize(
    ("sop_class", "modality"), [(XA, "XA"), (RF, "RF"), (XA, "CR"), (CR, "CR"), (CR, "XA")]
)
def test_modality_lut_to_beam_intensity(sop_class, modality, relation, tmp_path):
    """A modality LUT back to beam intensity is not for display."""
    stored = (RAMP % 256).astype(np.uint8)
    intensity = np.rint(80 * np.exp(np.arange(256) / 65)).astype(int)  # 80 to 4,044
    more = {"PixelIntensityRelationship": relation} if relation else {}
    data = film_bytes(
        stored,
        **{"SOPClassUID": sop_class, "Modality": modality, "WindowCenter": 127},
        **{"WindowWidth": 255, "ModalityLUTSequence": table(256, 0, 16, intensity)},
        **more,
    )
    log = relation in ("LOG", "DISP")
    displayed = sop_class == CR and not (modality == "XA" and log)
    values = intensity[stored] if displayed else stored
    close(data, np.clip(((values - 126.5) / 254 + 0.5) * 255, 0, 255), most=2)
    if (sop_class, modality) != (CR, "XA") or not log:  # dcmtk looks at the SOP class alone
        close(data, by_dcmtk(data, tmp_path, "+Wi", "1"), most=2)


GOOD = {"WindowCenter": 1000, "WindowWidth": 2000}
EMPTY, EXPLAINED = pydicom.Dataset(), pydicom.Dataset()
EXPLAINED.LUTExplanation = "no table"
NO_DATA = table(256, 0, 8, range(256))[0]
NO_DATA.add_new("LUTData", "OW", b"")


@pytest.mark.parametrize("item", [EMPTY, EXPLAINED, NO_DATA], ids=["empty", "explained", "no data"])
@pytest.mark.parametrize(
    ("keyword", "name"), [("VOILUTSequence", "VOI LUT"), ("ModalityLUTSequence", "modality LUT")]
)
def test_an_item_without_a_table_is_not_there_and_said_so(keyword, name, item):
    plain = film_of(film_bytes(RAMP, **TWELVE, **GOOD))
    film = film_of(film_bytes(RAMP, **TWELVE, **GOOD, **{keyword: [item]}))
    assert np.array_equal(film.pixels, plain.pixels)
    assert film.remarks == (f"{name} without a table; read without it",)
    assert plain.remarks == ()
    full = table(4096, 0, 12, 4095 - np.arange(4096))[0]
    second = film_of(film_bytes(RAMP, **TWELVE, **GOOD, **{keyword: [item, full]}))
    alone = film_of(film_bytes(RAMP, **TWELVE, **GOOD, **{keyword: [full]}))
    assert np.array_equal(second.pixels, alone.pixels)
    assert not np.array_equal(second.pixels, plain.pixels)


@pytest.mark.parametrize(
    ("center", "width"),
    [("0", "0"), ("2048", "0"), ("2048", "-4096"), ("2048", "0.5"), ("1e300", "1e-300")],
)
def test_a_window_that_cannot_be_is_left_out_and_said_so(center, width):
    plain = film_of(film_bytes(RAMP, **TWELVE))
    film = film_of(film_bytes(RAMP, **TWELVE, WindowCenter=center, WindowWidth=width))
    assert np.array_equal(film.pixels, plain.pixels)
    words = f"window {float(center):g}/{float(width):g}"
    assert film.remarks == (f"{words} cannot be applied; read without it",)
    good = {"WindowCenter": [center, "1000"], "WindowWidth": [width, "2000"]}
    second = film_of(film_bytes(RAMP, **TWELVE, **good))
    assert np.array_equal(second.pixels, film_of(film_bytes(RAMP, **TWELVE, **GOOD)).pixels)
    assert (second.original["steps"], second.remarks) == (
        ("window 1000/2000 applied",),
        (f"{words} cannot be applied; read without it",),
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", ["0", "-500"])
def test_no_function_has_a_window_without_width(function, width):
    window = {"WindowCenter": "2048", "WindowWidth": width, "VOILUTFunction": function}
    film = film_of(film_bytes(RAMP, **TWELVE, **window))
    assert film.remarks == (f"window 2048/{width} cannot be applied; read without it",)


def test_windows_that_are_no_numbers_are_left_out():
    film = film_bytes(RAMP, **TWELVE, WindowCenter="2048", WindowWidth="4096")
    damaged = film.replace(b"4096", b"4,96")
    assert damaged != film
    read = film_of(damaged)
    assert np.array_equal(read.pixels, film_of(film_bytes(RAMP, **TWELVE)).pixels)
    assert read.remarks == ("window 2048/nan cannot be applied; read without it",)
    good = {"WindowCenter": ["", "1000"], "WindowWidth": ["1", "2000"]}
    assert film_of(film_bytes(RAMP, **TWELVE, **good)).original["steps"] == (
        "window 1000/2000 applied",
    )
    unreadable = film.replace(b"\x28\0\x51\x10DS", b"\x28\0\x51\x10XY")
    assert film_of(unreadable).remarks == (
        "read without a window (damaged: WindowWidth cannot be read)",
    )


def test_width_below_one():
    """A width below one is a window where a small slope makes values small."""
    small = {"RescaleSlope": "5e-06", "RescaleIntercept": "0"}
    # 1024 to 3072 of 4095 stored values: by hand, LINEAR_EXACT (PS3.3 C.11.2.1.3.2).
    half = film_bytes(RAMP, **TWELVE, **small, WindowCenter="0.01024", WindowWidth="0.01024")
    close(half, np.rint(np.clip((RAMP - 1024.0) / 2048, 0, 1) * 255))
    assert film_of(half).remarks == ()
    narrow = film_bytes(RAMP, **TWELVE, **small, WindowCenter="0.01", WindowWidth="0.000001")
    assert "cannot be applied" in film_of(narrow).remarks[0]


def test_a_window_and_its_rescale_are_those_of_dcmtk(tmp_path):
    data = film_bytes(RAMP, **TWELVE, RescaleSlope="2", RescaleIntercept="-1000", **GOOD)
    close(data, by_dcmtk(data, tmp_path, "+Wi", "1"))


@pytest.mark.parametrize("syntax", [RAW, IMPLICIT, BIG])
def test_the_facts_of_these_films_are_what_pydicom_reads(syntax):
    sequence = table(4096, 64536, 12, np.arange(4096))
    data = film_bytes(RAMP, syntax=syntax, **TWELVE, VOILUTSequence=sequence)
    ds = pydicom.dcmread(io.BytesIO(data))
    assert list(ds.VOILUTSequence[0].LUTDescriptor)[::2] == [4096, 12]
    assert np.array_equal(ds.pixel_array, RAMP)
