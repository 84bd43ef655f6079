"""Stored values out of Pixel Data: bits, palettes, decoders, and what is not as it says."""

import io
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.pixels import get_decoder

from chexnet.dicom import FilmError, convert_folder
from chexnet.dicom.film import film_of
from tests.dicom.films import (
    BIG,
    IMPLICIT,
    J2K,
    JPEG,
    RAW,
    RLE,
    SV1,
    film_bytes,
    jpeg_bytes,
    lossless_jpeg,
    rle_film,
)

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
RAMP8 = (RAMP % 256).astype(np.uint8)
TWELVE = {"BitsStored": 12, "HighBit": 11}
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
EXTENDED, LOSSLESS, LS = (f"1.2.840.10008.1.2.4.{end}" for end in (51, 57, 80))
JPEG_XL, HTJ2K = "1.2.840.10008.1.2.4.112", "1.2.840.10008.1.2.4.201"
PLAIN = np.rint(RAMP / 4095 * 255)  # of 12 bits


def film_with(pixels, syntax, **header):
    """A film of all bits, and then another header: pydicom compresses no unused bits."""
    ds, out = pydicom.dcmread(io.BytesIO(film_bytes(pixels, syntax=syntax))), io.BytesIO()
    for keyword, value in header.items():
        setattr(ds, keyword, value)
    ds.save_as(out)
    return out.getvalue()


def as_big(data, syntax):
    return data.astype(data.dtype.newbyteorder(">" if syntax == BIG else "<")).tobytes()


def without_pixels(**header):
    ds, out = pydicom.dcmread(io.BytesIO(film_bytes(RAMP8))), io.BytesIO()
    del ds.PixelData
    for keyword, value in header.items():
        setattr(ds, keyword, value)
    ds.save_as(out)
    return out.getvalue()


def test_floating_point_pixels():
    """They are refused, whatever else the header says."""
    for keyword, dtype in (("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)):
        with pytest.raises(FilmError, match=r"^floating-point pixels; expected integers of 8 "):
            film_of(without_pixels(**{keyword: RAMP.astype(dtype).tobytes()}))


def test_rescale_beyond_numbers():
    """A slope that leads to infinity leaves no picture."""
    steep = {"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}
    with pytest.raises(FilmError, match=r"^its rescale leads to values that are not numbers$"):
        film_of(film_bytes(RAMP, **TWELVE, **steep))


def test_short_rle_frame():
    """An RLE frame begins with 64 bytes of its own."""
    film = rle_film(RAMP8, [64], b"")
    start = film.rindex(b"\xfe\xff\x00\xe0")
    short = film[:start] + b"\xfe\xff\x00\xe0\x08\0\0\0" + bytes(8) + film[-8:]
    with pytest.raises(FilmError, match=r"^truncated: its RLE frame has no header$"):
        film_of(short)


@pytest.mark.parametrize("syntax", [JPEG, J2K, RLE])
def test_no_decoder(syntax, monkeypatch):
    """A film whose decoder is not installed is refused with the name of its syntax."""
    film = film_with(RAMP8, syntax, WindowCenter=100, WindowWidth=50)  # decoded, not copied
    assert film_of(film).pixels.shape == (64, 64)
    monkeypatch.setattr("chexnet.dicom.pixels._PLUGINS", ())
    with pytest.raises(FilmError, match=re.escape(pydicom.uid.UID(syntax).name)):
        film_of(film)


@pytest.mark.parametrize("syntax", [RAW, IMPLICIT, BIG, RLE, J2K])
@pytest.mark.parametrize("window", [{}, WINDOW], ids=["spread", "window"])
def test_bits_above_bits_stored_are_an_overlay_and_not_shown(syntax, window):
    overlay = (RAMP % 3 == 0).astype(np.uint16) << 12
    film = film_of(film_with(RAMP | overlay, syntax, **TWELVE, **window))
    assert np.array_equal(film.pixels, PLAIN)


@pytest.mark.parametrize("syntax", [RAW, BIG, RLE, J2K])
@pytest.mark.parametrize("signed", [False, True])
def test_high_bit_says_where_the_bits_stored_are(syntax, signed):
    stored = RAMP.astype(np.int64) - 2048 * signed
    # Bits 3 to 14 are the value; the others are set where nothing may look at them.
    raised = ((stored << 3) & 0x7FFF) | (RAMP % 2 * 0x8000) | (RAMP % 5)
    more = {"BitsStored": 12, "HighBit": 14, "PixelRepresentation": int(signed)}
    film = film_of(film_with(raised.astype(np.uint16), syntax, **more))
    assert np.array_equal(film.pixels, PLAIN)
    assert film.remarks == ()


@pytest.mark.parametrize("high", [0, 3, 10, 16, 99])
def test_a_high_bit_that_cannot_be_is_the_usual_one_and_said_so(high):
    film = film_of(film_bytes(RAMP, BitsStored=12, HighBit=high))
    assert np.array_equal(film.pixels, PLAIN)
    assert film.remarks == (f"High Bit {high} cannot be; read as 11",)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", [JPEG, "1.2.840.10008.1.2.4.51", J2K])
def test_a_stream_of_8_bits_in_a_header_of_16_is_one_of_8(syntax, bits):
    codec = {"codec": "JPEG2000", "no_jp2": True} if syntax == J2K else {}
    stream = jpeg_bytes(RAMP8, **codec)
    header = film_bytes(RAMP8, PixelData=encapsulate([stream]), syntax=syntax)
    plain = film_of(header).pixels
    wide = {"BitsAllocated": 16, "BitsStored": bits, "HighBit": bits - 1}
    film = film_of(film_bytes(RAMP8, PixelData=encapsulate([stream]), syntax=syntax, **wide))
    assert np.array_equal(film.pixels, plain)
    assert film.original["bits"] == 8 and film.pixels.dtype == np.uint8


def test_a_stream_of_12_bits_in_a_header_of_8_is_one_of_12():
    stream = jpeg_bytes(RAMP << 4, codec="JPEG2000", no_jp2=True)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    film = film_of(film_bytes(RAMP, syntax=J2K, PixelData=encapsulate([stream]), **eight))
    assert np.abs(film.pixels - PLAIN).max() <= 1 and film.original["bits"] == 16


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", [RAW, BIG, RLE])
def test_color_of_8_bits_in_16_gives_a_film_of_8_bits(syntax, photometric):
    colors = np.stack([RAMP8, RAMP8.T, 255 - RAMP8], -1)
    more = {"PhotometricInterpretation": photometric}
    narrow = film_of(film_with(colors, syntax, **more))
    film = film_of(film_with(colors.astype(np.uint16), syntax, BitsStored=8, HighBit=7, **more))
    assert film.pixels.dtype == np.uint8
    assert np.array_equal(film.pixels, narrow.pixels)


def palette(declared, words, syntax=RAW, first=0):
    more = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color in ("Red", "Green", "Blue"):
        count = 256 if len(words) in (128, 256) else len(words)
        more[f"{color}PaletteColorLookupTableDescriptor"] = [count, first, declared]
        data = as_big(np.asarray(words).astype(np.uint16), syntax)
        more[f"{color}PaletteColorLookupTableData"] = data
    return more


GRAYS = np.arange(256)
PALETTES = {
    "16 bits": (16, GRAYS * 257),
    "the high byte": (16, GRAYS << 8),
    "8 bits two a word": (8, GRAYS[::2] + 256 * GRAYS[1::2]),
    "8 bits one a word": (8, GRAYS),
    "16 bits said and 8 used": (16, GRAYS),
    "8 bits said and 16 used": (8, GRAYS * 257),
}


@pytest.mark.parametrize("syntax", [RAW, IMPLICIT, BIG])
@pytest.mark.parametrize("name", PALETTES)
def test_a_palette_of_grays_gives_these_grays(name, syntax, tmp_path):
    declared, words = PALETTES[name]
    data = film_bytes(RAMP8, syntax=syntax, **palette(declared, words, syntax))
    film = film_of(data)
    assert np.array_equal(film.pixels, RAMP8)
    expected = ("palette of 8 bits, 16 declared",) if "16 bits said" in name else ()
    assert film.remarks == expected
    if shutil.which("dcmj2pnm") and name in ("16 bits", "the high byte", "8 bits two a word"):
        path, picture = tmp_path / "film.dcm", tmp_path / "film.ppm"
        path.write_bytes(data)
        subprocess.run(["dcmj2pnm", "-q", "+op", path, picture], check=True)
        assert np.array_equal(np.asarray(Image.open(picture).convert("L")), RAMP8)


def test_a_palette_has_a_first_value_and_ends():
    grays = 255 - np.arange(100)
    film = film_of(film_bytes(RAMP8, **palette(16, grays * 257, first=50)))
    assert np.array_equal(film.pixels, grays[np.clip(RAMP8.astype(int) - 50, 0, 99)])
    with pytest.raises(FilmError, match="no color palette, or a segmented one"):
        film_of(film_bytes(RAMP8, PhotometricInterpretation="PALETTE COLOR"))


def item(data):
    return b"\xfe\xff\0\xe0" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    "offsets", [b"\xd2\x04\0\0", b"\0\0\0\0\x99\0\0\0", b"\xff" * 4, b"", None]
)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_wrong_table_of_offsets(offsets, photometric, tmp_path):
    """One frame needs no table of offsets and may have a wrong one."""
    stream = jpeg_bytes(RAMP8)
    stream += b"\0" * (len(stream) % 2)
    raw = (b"" if offsets is None else item(offsets)) + item(stream[:500]) + item(stream[500:])
    more = {"PhotometricInterpretation": photometric, "PixelData": raw}
    data = film_bytes(RAMP8, syntax=JPEG, **more)
    right = film_bytes(RAMP8, syntax=JPEG, **more | {"PixelData": encapsulate([stream])})
    assert np.array_equal(film_of(data).pixels, film_of(right).pixels)
    source = tmp_path / "films"
    source.mkdir()
    (source / "wrong.dcm").write_bytes(data)
    (source / "right.dcm").write_bytes(right)
    films = convert_folder(source, tmp_path / "jpg", workers=1, progress=False)
    status = "copied" if photometric == "MONOCHROME2" else "encoded"
    assert list(films["status"]) == [status, status]
    jpgs = [(tmp_path / "jpg" / f"{name}.jpg").read_bytes() for name in ("wrong", "right")]
    assert jpgs[0] == jpgs[1]


def renamed(data, syntax):
    """A film that says another transfer syntax than it is in."""
    at = data.index(b"\2\0\x10\0UI") + 6
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    end = at + 2 + int.from_bytes(data[at : at + 2], "little")
    return data[:at] + struct.pack("<H", len(uid)) + uid + data[end:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (film_bytes(RAMP8, PixelData=b""), "no pixel data: its Pixel Data is empty"),
        (
            renamed(film_bytes(RAMP8, PixelData=b""), JPEG),
            "no pixel data: its Pixel Data is empty",
        ),
        (
            renamed(film_bytes(RAMP8), JPEG),
            "its pixels are not compressed; expected JPEG Baseline (Process 1)",
        ),
        (renamed(film_bytes(RAMP8), RLE), "its pixels are not compressed; expected RLE Lossless"),
        (
            renamed(film_bytes(RAMP8, syntax=JPEG), RAW),
            "its pixels are compressed; expected Explicit VR Little Endian",
        ),
        (renamed(film_bytes(RAMP8), JPEG_XL), "there is no decoder for JPEG XL"),
        (
            renamed(film_bytes(RAMP8), f"{JPEG_XL[:-1]}0"),
            "there is no decoder for JPEG XL Lossless",
        ),
        (
            renamed(film_bytes(RAMP8), f"{JPEG_XL[:-1]}1"),
            "there is no decoder for JPEG XL JPEG Recompression",
        ),
        (
            renamed(film_bytes(RAMP8), "1.2.840.10008.1.2.4.100"),
            "there is no decoder for MPEG2 Main Profile / Main Level",
        ),
        (renamed(film_bytes(RAMP8), "1.2.840.10008.1.2.4.999"), "unknown transfer syntax"),
    ],
)
def test_pixels_unlike_the_header(data, reason):
    """Pixels that are not as the header says are refused for that reason."""
    with pytest.raises(FilmError) as caught:
        film_of(data)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        (EXTENDED, "imagecodecs"),
        (LOSSLESS, "imagecodecs"),
        (SV1, "imagecodecs"),
        (LS, "imagecodecs"),
        (HTJ2K, "pylibjpeg-openjpeg"),
    ],
)
def test_missing_decoder(syntax, package, monkeypatch):
    """Without its decoder, a film is refused with what to install."""
    decoder = get_decoder(pydicom.uid.UID(syntax))
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(
        FilmError, match=rf"^no decoder for .* is installed; pip install .*{package}"
    ):
        film_of(film_bytes(RAMP8, syntax=syntax, PixelData=encapsulate([jpeg_bytes(RAMP8)])))


@pytest.mark.parametrize("syntax", [JPEG, J2K])
def test_pillow_reads_what_it_can_whatever_else_is_installed(syntax, monkeypatch):
    decoder, chosen = get_decoder(pydicom.uid.UID(syntax)), []
    as_array = type(decoder).as_array

    def spy(self, *args, decoding_plugin="", **options):
        chosen.append(decoding_plugin)
        return as_array(self, *args, decoding_plugin=decoding_plugin, **options)

    monkeypatch.setattr(type(decoder), "as_array", spy)
    film_of(film_bytes(RAMP8, syntax=syntax))
    assert chosen == ["pillow"]


def needs(syntax):
    if not get_decoder(pydicom.uid.UID(syntax)).is_available:
        pytest.skip("the optional decoders are not installed: pip install imagecodecs")


def test_a_jpeg_of_12_bits_gives_its_values():
    needs(EXTENDED)
    values = np.rint(np.linspace(0, 4095, 64 * 48)).astype(np.uint16).reshape(64, 48)
    stream = pytest.importorskip("imagecodecs").jpeg8_encode(values, 100, bitspersample=12)
    film = film_of(film_bytes(values, syntax=EXTENDED, PixelData=encapsulate([stream]), **TWELVE))
    plain = film_of(film_bytes(values, **TWELVE))
    assert film.original["bits"] == 12
    assert np.abs(film.pixels.astype(int) - plain.pixels).max() <= 1


def test_lossless_twins():
    """A lossless film of pydicom gives the pixels of its plain twin."""
    needs(LS)
    names = ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm")
    films = [Path(get_testdata_file(name, download=False)).read_bytes() for name in names]
    assert pydicom.dcmread(io.BytesIO(films[0])).file_meta.TransferSyntaxUID == LS
    assert np.array_equal(film_of(films[0]).pixels, film_of(films[1]).pixels)


@pytest.mark.parametrize("rows_per_restart", [0, 1, 16])
@pytest.mark.parametrize("bits", [12, 16])
def test_a_lossless_jpeg_made_by_hand_gives_its_values(bits, rows_per_restart):
    needs(SV1)
    values = (RAMP * 7919 % 4096 << bits - 12).astype(np.uint16)
    stream = lossless_jpeg(values, bits=bits, rows_per_restart=rows_per_restart)
    header = {"BitsStored": bits, "HighBit": bits - 1}
    data = film_bytes(values, syntax=SV1, PixelData=encapsulate([stream]), **header)
    film = film_of(data)
    assert np.array_equal(film.pixels, film_of(film_bytes(values, **header)).pixels)
    assert film.original["bits"] == bits


@pytest.mark.parametrize("rows_per_restart", [0, 16])
@pytest.mark.parametrize("rest", ["nothing", "zeros", "ones"])
def test_half_a_lossless_jpeg_made_by_hand_is_refused(rest, rows_per_restart):
    needs(SV1)
    stream = lossless_jpeg(RAMP * 7919 % 4096, rows_per_restart=rows_per_restart)
    half = stream[: len(stream) // 2]
    gone = len(stream) - len(half)
    half += {"nothing": b"", "zeros": bytes(gone), "ones": b"\xff\0" * (gone // 2)}[rest]
    data = film_bytes(RAMP, syntax=SV1, PixelData=encapsulate([half + b"\xff\xd9"]), **TWELVE)
    with pytest.raises(FilmError, match="truncated"):
        film_of(data)


def compressed(data, folder, *command):
    """A film after one of dcmtk's compressors."""
    if not shutil.which(command[0]):
        pytest.skip("dcmtk is not installed (apt-get install dcmtk)")
    plain, out = folder / "plain.dcm", folder / "compressed.dcm"
    plain.write_bytes(data)
    subprocess.run([*command, plain, out], check=True, capture_output=True)
    return out.read_bytes()


def waves(kind):
    """A smooth picture that needs more than a few bits."""
    y, x = np.mgrid[:90, :70]
    values = 2000 + 900 * np.sin(x / 9) + 900 * np.cos(y / 7) + 40 * np.sin(x * y)
    values = values.astype(np.uint16)
    if kind == "RGB":
        return np.stack(
            [values >> 4, values.T.reshape(90, 70) >> 5, 255 - (values >> 4)], -1
        ).astype(np.uint8)
    return {8: (values >> 4).astype(np.uint8), 16: values * 16}.get(kind, values)


KINDS = {
    "8 bits": (8, {}),
    "12 bits": (12, TWELVE),
    "16 bits": (16, {}),
    "left": (16, {"BitsStored": 12, "HighBit": 15}),
    "RGB": ("RGB", {}),
}
COMMANDS = [("dcmcjpeg", "+e1"), ("dcmcjpls",)]
COMMANDS += [("dcmcjpeg", "+el", "+sv", str(predictor)) for predictor in range(1, 8)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("kind", KINDS)
def test_lossless_jpeg_and_jpeg_ls_give_the_very_pixels(kind, command, tmp_path):
    needs(LS if command[0] == "dcmcjpls" else SV1)
    number, more = KINDS[kind]
    data = film_bytes(waves(number), **more)
    plain, film = film_of(data), film_of(compressed(data, tmp_path, *command))
    assert np.array_equal(film.pixels, plain.pixels)
    assert film.remarks == plain.remarks


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("kind", ["12 bits", "RGB"])
def test_half_a_lossless_stream(kind, command, tmp_path):
    """Half a lossless stream is refused, also with an end or zeros behind it."""
    needs(LS if command[0] == "dcmcjpls" else SV1)
    number, more = KINDS[kind]
    data = compressed(film_bytes(waves(number), **more), tmp_path, *command)
    ds = pydicom.dcmread(io.BytesIO(data))
    _, *fragments = generate_fragments(ds.PixelData)
    stream = b"".join(fragments)
    half = len(stream) // 2
    for rest in (b"", bytes(len(stream) - half)):
        ds.PixelData, out = encapsulate([stream[:half] + rest + b"\xff\xd9"]), io.BytesIO()
        ds.save_as(out)
        with pytest.raises(FilmError, match="truncated"):
            film_of(out.getvalue())


def test_a_decoder_that_fails_is_named():
    needs(SV1)
    stream = b"\xff\xd8" + bytes(64) + b"\xff\xd9"
    with pytest.raises(FilmError, match=r"declares no size \(decoder: imagecodecs\)$"):
        film_of(film_bytes(RAMP8, syntax=SV1, PixelData=encapsulate([stream])))
