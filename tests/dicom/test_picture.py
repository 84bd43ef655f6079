"""Tests of PNG and JPG files on their way to a folder of JPGs."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from chexnet.dicom import FilmError, convert_folder, film_to_jpg, read_film
from chexnet.dicom.picture import color_to_gray
from chexnet.files import read_image
from tests.dicom.films import SECRET, jpeg_bytes

GRAY = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8)
SMOOTH = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
# Red, green and blue stripes.
COLORS = np.repeat(np.eye(3, dtype=np.uint8)[[0, 1, 2]] * 255, 16, axis=0)[:, None].repeat(64, 1)
# EXIF that asks for a rotation by 90 degrees (tag 0x0112 is 6).
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def png(pixels, mode=None, **options):
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def png16(pixels):
    """OpenCV writes 16 bits and color, with or without alpha."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def film(tmp_path, data):
    (tmp_path / "film").write_bytes(data)
    return read_film(tmp_path / "film")


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (png(GRAY), ("PNG", "gray", 8)),
        (png(np.dstack([GRAY] * 3)), ("PNG", "color", 8)),
        (png(np.dstack([GRAY, np.full_like(GRAY, 255)])), ("PNG", "gray and alpha", 8)),
        (png(np.dstack([GRAY] * 3 + [np.full_like(GRAY, 255)])), ("PNG", "color and alpha", 8)),
        (png(GRAY, "P"), ("PNG", "palette", 8)),
    ],
    ids=lambda part: part[1] if isinstance(part, tuple) else "",
)
def test_gray_of_8_bits(tmp_path, data, stored):
    """A gray picture of 8 bits keeps its pixels however it is stored."""
    read = film(tmp_path, data)
    assert np.array_equal(read.pixels, GRAY)
    was = read.original
    assert (was["transfer_syntax"], was["photometric"], was["bits"]) == stored
    assert was["steps"] == () or (was["steps"] == ("color made gray",) and "gray" not in stored[1])
    assert read.remarks == () and read.jpg is None
    facts = {"view": None, "sex": None, "age": None, "rows": 48, "columns": 64}
    assert read.header == facts


def test_one_bit_is_black_and_white(tmp_path):
    read = film(tmp_path, png(GRAY > 100))
    assert np.array_equal(read.pixels, (GRAY > 100) * np.uint8(255))
    assert read.original["bits"] == 1


@pytest.mark.parametrize(("lowest", "highest"), [(0, 65535), (0, 4095), (1000, 1255), (7, 7)])
def test_spread_of_16_bits(tmp_path, lowest, highest):
    """16 bits are spread from their lowest to their highest value."""
    deep = np.linspace(lowest, highest, 48 * 64).reshape(48, 64).round().astype(np.uint16)
    read = film(tmp_path, png16(deep))
    span = max(highest - lowest, 1)
    assert np.array_equal(read.pixels, np.rint((deep.astype(float) - lowest) / span * 255))
    step = f"spread from its lowest to its highest value ({lowest} to {highest})"
    assert read.original["steps"] == (step,)
    assert np.array_equal(film(tmp_path, png16(np.dstack([deep] * 3))).pixels, read.pixels)


def test_transparent_pixels_are_black(tmp_path):
    alpha = np.full_like(GRAY, 255)
    alpha[:, :8], alpha[:, 8:16] = 0, 128
    read = film(tmp_path, png(np.dstack([GRAY, alpha])))
    assert not read.pixels[:, :8].any()
    assert np.array_equal(read.pixels[:, 8:16], np.floor(GRAY[:, 8:16] * (128 / 255) + 0.5))
    assert np.array_equal(read.pixels[:, 16:], GRAY[:, 16:])
    assert read.original["steps"] == ("transparent pixels made black",)
    deep = np.dstack([GRAY.astype(np.uint16) * 257] * 3 + [alpha.astype(np.uint16) * 257])
    assert np.array_equal(film(tmp_path, png16(deep)).pixels[:, 16:], GRAY[:, 16:])


def test_strong_color_is_said_and_a_tint_or_a_mark_is_not():
    gray, steps, remarks = color_to_gray(COLORS)
    # ITU-R BT.601: 0.299 red, 0.587 green, 0.114 blue.
    assert gray[::16, 0].tolist() == [76, 150, 29] and steps == ["color made gray"]
    assert remarks == ["100% of its pixels have strong colors: is it a radiograph?"]
    deep = color_to_gray(COLORS.astype(np.uint16) * 257)
    assert deep[2] == remarks and deep[0].dtype == np.uint16
    tinted = np.dstack([GRAY, GRAY, np.minimum(GRAY, 225) + 30])
    marked = np.dstack([GRAY] * 3)
    marked[:4] = 255, 0, 0
    for picture in (tinted, marked):
        assert color_to_gray(picture)[1:] == (["color made gray"], [])


@pytest.mark.parametrize("orientation", ["JPG", "PNG"])
def test_exif_orientation(tmp_path, orientation):
    """The orientation that EXIF asks for is said and not applied."""
    if orientation == "JPG":
        stream = jpeg_bytes(GRAY)
        data = stream[:2] + b"\xff\xe1" + (len(EXIF) + 2).to_bytes(2) + EXIF + stream[2:]
    else:
        data = png(GRAY, exif=EXIF)
    read = film(tmp_path, data)
    assert read.pixels.shape == (48, 64)
    assert read.remarks == ("EXIF orientation 6 not applied",)
    assert film_to_jpg(tmp_path / "film")[1]["reason"].endswith(
        "remark: EXIF orientation 6 not applied"
    )


def test_a_folder_of_pictures_is_converted_with_the_same_table(tmp_path):
    source, target = tmp_path / "films", tmp_path / "jpg"
    source.mkdir()
    secret = jpeg_bytes(GRAY, remark=SECRET)
    files = {
        "color.jpg": jpeg_bytes(COLORS),
        "cut.jpg": secret[: len(secret) // 2] + secret[-2:],
        "cut.png": png(GRAY)[:-20],
        "deep.png": png16(GRAY.astype(np.uint16) * 16),
        "plain.jpeg": secret + b"padding",
        "plain.png": png(GRAY),
        "progressive.jpg": jpeg_bytes(GRAY, progressive=True),
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    table = convert_folder(source, target, progress=False, workers=1).set_index("file")
    assert table["status"].to_dict() == {
        name: "copied" if name == "plain.jpeg" else "failed" if "cut" in name else "encoded"
        for name in files
    }
    assert table["reason"].to_dict() == {
        "color.jpg": "color made gray; remark: 100% of its pixels have strong colors: is it a "
        "radiograph?",
        "cut.jpg": "truncated or damaged: its JPEG cannot be decoded to its end",
        "cut.png": "truncated: its PNG has no end",
        "deep.png": "spread from its lowest to its highest value (0 to 4080)",
        "plain.jpeg": "",
        "plain.png": "pixels as stored",
        "progressive.jpg": "pixels as stored",
    }
    assert table["stored"].to_dict() == {
        "color.jpg": "JPEG baseline, 8 bits, color",
        "cut.jpg": "",
        "cut.png": "",
        "deep.png": "PNG, 16 bits, gray",
        "plain.jpeg": "JPEG baseline, 8 bits, gray",
        "plain.png": "PNG, 8 bits, gray",
        "progressive.jpg": "JPEG progressive, 8 bits, gray",
    }
    assert (target / "plain_jpeg.jpg").exists() is False
    assert (target / f"{table.loc['plain.jpeg', 'image_id']}.jpg").read_bytes() == jpeg_bytes(GRAY)
    for row in table[table["status"] != "failed"].itertuples():
        written = read_image(target / f"{row.image_id}.jpg")
        assert np.abs(written.astype(int) - read_film(source / row.Index).pixels).mean() < 4
    assert not convert_folder(source, target, progress=False, workers=1)["new"].any()


def test_a_jpg_gives_the_pixels_that_reading_it_gives(tmp_path):
    for number, data in enumerate((jpeg_bytes(SMOOTH), jpeg_bytes(COLORS))):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        assert np.array_equal(read_film(path).pixels, read_image(path))


def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("kind", [0, 2, 6])
def test_enormous_png(tmp_path, kind):
    """A PNG that says it is enormous is refused before it is decoded."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 16, kind, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6)))
    with pytest.raises(FilmError, match="60000 x 60000 pixels of"):
        film(tmp_path, data + chunk(b"IEND", b""))


def test_enormous_jpg(tmp_path):
    """A JPG that says it is enormous is refused before it is decoded."""
    stream = jpeg_bytes(GRAY)
    at = stream.index(b"\xff\xc0") + 5
    with pytest.raises(FilmError, match="65500 x 65500 pixels of 1 values"):
        film(tmp_path, stream[:at] + struct.pack(">HH", 65500, 65500) + stream[at + 4 :])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(GRAY)[:20], "truncated or damaged: its PNG has no header"),
        (png(GRAY)[:100], "truncated: its PNG has no end"),
        (png(GRAY)[:90] + bytes(200) + png(GRAY)[-200:], "damaged: its PNG cannot be decoded"),
        (jpeg_bytes(GRAY)[:20], "its JPEG declares no size"),
        (jpeg_bytes(GRAY)[:-2], "its JPEG has no end"),
        (jpeg_bytes(GRAY).replace(b"\xff\xc0", b"\xff\xc3"), "a lossless JPEG of 8 bits"),
        (jpeg_bytes(GRAY).replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"), "JPEG of 12 bits"),
    ],
)
def test_a_damaged_picture_is_refused_with_a_reason(tmp_path, data, reason):
    with pytest.raises(FilmError, match=f"film: .*{reason}"):
        film(tmp_path, data)


def test_every_cut_of_a_picture_is_refused(tmp_path):
    for data in (png(GRAY), jpeg_bytes(SMOOTH)):
        for length in range(40, len(data) - 16, 7):
            with pytest.raises(FilmError):
                film(tmp_path, data[:length])
            if data[:2] == b"\xff\xd8" and length > 330:
                with pytest.raises(FilmError, match="cannot be decoded to its end"):
                    film(tmp_path, data[:length] + data[-2:])
