"""What a film's row says where its picture may not be what its maker meant."""

import numpy as np
import pytest

from chexnet.dicom import convert_folder
from chexnet.dicom.display import find_flat
from chexnet.dicom.film import film_of, stored_jpeg
from tests.dicom.films import JPEG, film_bytes

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
RAMP8 = (RAMP % 256).astype(np.uint8)
TWELVE = {"BitsStored": 12, "HighBit": 11}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)  # needs many bits a block


@pytest.mark.parametrize(
    ("header", "remark"),
    [
        ({"WindowCenter": 9000, "WindowWidth": 100}, "one shade: every pixel is 0"),
        ({"WindowCenter": -900, "WindowWidth": 100}, "one shade: every pixel is 255"),
        ({"WindowCenter": 4094, "WindowWidth": 2}, "100.0% of its pixels are black or white"),
        ({"WindowCenter": 2000, "WindowWidth": 1}, "100.0% of its pixels are black or white"),
        (
            {"WindowCenter": 0, "WindowWidth": 131072},
            # 4,095 of 131,071 by hand: (v + 0.5) / 131071 * 255 + 127.5 runs from 127.5 to 135.5.
            "nearly one shade: 99% of its pixels are from 128 to 135",
        ),
        ({"WindowCenter": 2048, "WindowWidth": 4096}, None),
        ({}, None),
    ],
    ids=str,
)
def test_window_outside_the_values(header, remark, tmp_path):
    """A window outside the values leaves one shade and is said so."""
    data = film_bytes(RAMP, **TWELVE, **header)
    film = film_of(data)
    assert film.remarks == ((remark,) if remark else ())
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "film.dcm").write_bytes(data)
    row = convert_folder(tmp_path / "films", tmp_path / "jpg", workers=1, progress=False).iloc[0]
    assert row["status"] == "encoded"
    steps = ", ".join(film.original["steps"])
    assert row["reason"] == (f"{steps}; remark: {remark}" if remark else steps)


def test_no_picture():
    """Padding and burnt-in text do not hide that there is no picture."""
    stored = np.full((100, 100), 700, np.uint16)
    stored[:, :40] = 0  # padding
    stored[:3, 50:60] = 4095  # a marker
    film = film_of(film_bytes(stored, **TWELVE, PixelPaddingValue=0))
    assert len(np.unique(film.pixels)) <= 3
    assert film.remarks == ("100.0% of its pixels are black or white",)
    middle = {"WindowCenter": 700, "WindowWidth": 2000}
    gray = film_of(film_bytes(stored, **TWELVE, PixelPaddingValue=0, **middle))
    assert gray.remarks == ("nearly one shade: 99% of its pixels are from 128 to 128",)


def test_least_picture():
    """A picture needs a hundredth of its pixels and sixteen shades."""
    black = np.zeros((100, 100), np.uint8)
    few, enough = black.copy(), black.copy()
    few.ravel()[:99], enough.ravel()[:100] = np.arange(99) + 1, np.arange(100) + 1
    assert find_flat(few) == "99.0% of its pixels are black or white"
    assert find_flat(enough) is None
    for shades, flat in ((16, True), (17, False)):
        assert bool(find_flat((100 + RAMP % shades).astype(np.uint8))) == flat
    assert find_flat(RAMP8) is None


def test_a_jpg_of_one_shade_is_copied_and_said_so(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    (films / "flat.dcm").write_bytes(film_bytes(np.full((64, 64), 77, np.uint8), syntax=JPEG))
    (films / "picture.dcm").write_bytes(film_bytes(NOISE, syntax=JPEG))
    rows = convert_folder(films, tmp_path / "jpg", workers=1, progress=False).set_index("image_id")
    assert list(rows["status"]) == ["copied", "copied"]
    assert list(rows["reason"]) == ["remark: one shade: every pixel is 77", ""]
    assert stored_jpeg((films / "picture.dcm").read_bytes()) is not None  # copied unseen


CONTRADICTIONS = [
    (
        {"PresentationLUTShape": "INVERSE"},
        "Presentation LUT Shape INVERSE contradicts MONOCHROME2; not followed",
    ),
    (
        {"PresentationLUTShape": "IDENTITY", "PhotometricInterpretation": "MONOCHROME1"},
        "Presentation LUT Shape IDENTITY contradicts MONOCHROME1; not followed",
    ),
    (
        {"PresentationIntentType": "FOR PROCESSING"},
        "FOR PROCESSING: its values are not meant for display",
    ),
    (
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"},
        "FOR PROCESSING: its values are not meant for display",
    ),
    (
        {"PixelAspectRatio": ["5", "4"]},
        "pixels are not square: height / width 1.25; not resampled",
    ),
    (
        {"PixelSpacing": ["0.2", "0.1"]},
        "pixels are not square: height / width 2; not resampled",
    ),
    (
        {"ImagerPixelSpacing": ["0.139", "0.143"]},
        "pixels are not square: height / width 0.972; not resampled",
    ),
]
FINE = [
    {"PresentationLUTShape": "IDENTITY"},
    {"PresentationLUTShape": "INVERSE", "PhotometricInterpretation": "MONOCHROME1"},
    {"PresentationLUTShape": "LIN OD"},
    {"PresentationIntentType": "FOR PRESENTATION"},
    {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"},
    {"PixelAspectRatio": ["1", "1"]},
    {"PixelSpacing": ["0.143", "0.1430"]},
    {"PixelSpacing": ["0.143", "0.144"]},
    {"ImagerPixelSpacing": "0.143"},
    {"PixelSpacing": ["0", "0.1"]},
    {"PixelSpacing": []},
]


@pytest.mark.parametrize(("header", "remark"), [*CONTRADICTIONS, *((fine, None) for fine in FINE)])
@pytest.mark.parametrize("more", [{}, {"syntax": JPEG}], ids=["plain", "JPEG"])
def test_what_the_header_says(header, remark, more):
    """What a header says beside the pixels is read as before and said."""
    photometric = header.get("PhotometricInterpretation", "MONOCHROME2")
    plain = film_of(film_bytes(NOISE, PhotometricInterpretation=photometric, **more))
    data = film_bytes(NOISE, **header, **more)
    film = film_of(data)
    assert np.array_equal(film.pixels, plain.pixels) and film.original == plain.original
    assert film.remarks == ((remark,) if remark else ())
    # What is copied unseen has nothing to say.
    assert stored_jpeg(data) is None or not remark


@pytest.mark.parametrize("spacing", [["0.143", "0.143"], []])
def test_a_film_with_nothing_to_say_is_copied_unseen(spacing):
    header = {"PixelSpacing": spacing, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"}
    assert stored_jpeg(film_bytes(NOISE, syntax=JPEG, **header)) is not None


def test_a_damaged_pixel_spacing_says_nothing():
    data = film_bytes(NOISE, PixelSpacing=["0.2", "0.1"]).replace(b"0.2\\0.1 ", b"x.2\\0.1 ")
    assert film_of(data).remarks == ()
