"""Tests of the JPG that is taken out of a film without decoding it."""

import io

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate

from chexnet.dicom import FilmError, film_to_jpg, read_film
from chexnet.dicom.film import film_of, stored_jpeg
from chexnet.dicom.jpeg import check_complete, check_jpeg, grey_baseline, looks_complete
from tests.dicom.films import J2K, JPEG, RAW, SECRET, film_bytes, jpeg_bytes, lut

GREY = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8)
FRAME = jpeg_bytes(GREY)


def segment(marker, content):
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content


def decoded(jpg):
    return np.asarray(Image.open(io.BytesIO(jpg)))


def test_every_genuine_film_is_copied_to_the_last_bit(rsna_dir):
    films = sorted((rsna_dir / "stage_2_train_images").glob("*.dcm"))
    assert len(films) == 875
    for film in films:
        header, jpg = stored_jpeg(film.read_bytes())
        ds = pydicom.dcmread(film)
        assert (ds.PatientAge, ds.PatientSex, ds.ViewPosition) == (
            str(header["age"]),
            header["sex"],
            header["view"],
        )
        assert jpg[-2:] == b"\xff\xd9"
        pixels = ds.pixel_array
        opened = cv2.imdecode(np.frombuffer(jpg, np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels.shape == (header["rows"], header["columns"])
        assert np.array_equal(opened, pixels)


def test_a_clean_frame_stays_as_it_is_and_padding_goes():
    assert grey_baseline(FRAME, 48, 64) == FRAME
    assert grey_baseline(FRAME + b"\0", 48, 64) == FRAME
    assert grey_baseline(FRAME + b"more" + FRAME, 48, 64) == FRAME


def test_remarks_and_small_copies_of_the_film_are_left_out():
    thumbnail = b"JFIF\0\1\1\0\0\1\0\1\2\2" + b"thumbnailing"
    for added in (
        segment(0xFE, SECRET.encode()),
        segment(0xE1, b"Exif\0\0" + SECRET.encode()),
        segment(0xED, SECRET.encode()),
        segment(0xE0, thumbnail),
    ):
        jpg = grey_baseline(FRAME[:2] + added + FRAME[2:], 48, 64)
        assert jpg == FRAME
        assert np.array_equal(decoded(jpg), decoded(FRAME))


def test_plain_gray_baseline():
    """Only a plain gray baseline frame of the right size is taken."""
    colour = jpeg_bytes(np.stack([GREY] * 3, -1))
    progressive = jpeg_bytes(GREY, progressive=True)
    at = FRAME.index(b"\xff\xda")
    others = [
        colour,
        progressive,
        FRAME[:-2],  # no end
        FRAME[: at + 4],
        FRAME[:at],
        FRAME[:at] + FRAME[at + 10 :],  # no start of scan
        FRAME[:-2] + segment(0xFE, b"remark") + b"\xff\xd9",  # something after the scan
        FRAME[:-2] + FRAME[at:],  # two scans
        FRAME[:2] + segment(0xDB, bytes(64) + b"a name") + FRAME[2:],
        FRAME[:2] + segment(0xC4, bytes(17) + b"a name") + FRAME[2:],
        FRAME[:2] + segment(0xC4, b"\0" + b"\xff" * 16) + FRAME[2:],
        FRAME[:2] + segment(0xDD, b"a name") + FRAME[2:],
        b"",
        b"\xff\xd8",
        GREY.tobytes(),
    ]
    assert [grey_baseline(frame, 48, 64) for frame in others] == [None] * len(others)
    assert grey_baseline(FRAME, 64, 48) is None
    assert grey_baseline(FRAME, 48, 65) is None


def test_a_frame_with_restarts_is_taken():
    at = FRAME.index(b"\xff\xda")
    restarting = FRAME[:at] + segment(0xDD, b"\0\4") + FRAME[at:-2] + b"\xff\xd0\xff\xd9"
    assert grey_baseline(restarting, 48, 64) == restarting


@pytest.mark.parametrize(
    "stream",
    [
        FRAME,
        jpeg_bytes(GREY, progressive=True),
        jpeg_bytes(GREY, codec="JPEG2000"),
        jpeg_bytes(GREY, codec="JPEG2000", no_jp2=True),
        FRAME[:2] + b"\xff" + FRAME[2:],  # a fill byte
    ],
    ids=["baseline", "progressive", "JPEG 2000", "JPEG 2000 stream", "fill byte"],
)
def test_the_size_is_the_one_that_the_stream_itself_declares(stream):
    check_jpeg(stream, 48, 64)
    with pytest.raises(FilmError, match="its JPEG is 48 x 64; expected 64 x 48 pixels"):
        check_jpeg(stream, 64, 48)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (FRAME[:20], "damaged: its JPEG declares no size"),
        (b"no picture", "damaged: its JPEG 2000 stream cannot be read"),
        (FRAME[:-2], "truncated: its JPEG has no end"),
        (FRAME + b"\xff\xda" * 32, "its JPEG has 33 scans; expected at most 32"),
    ],
)
def test_a_stream_that_should_not_be_decoded_is_refused(stream, reason):
    with pytest.raises(FilmError, match=f"^{reason}$"):
        check_jpeg(stream, 48, 64)


NOISE = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
SMOOTH = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 255, (1024, 1024), np.uint8), None, 1.6
)


def damaged(stream, share, kind):
    """A JPEG whose end is not its own, but for the marker."""
    kept = int(len(stream) * share)
    kept -= stream[kept - 1] == 0xFF
    lost = len(stream) - kept - 2
    noise = np.random.default_rng(1).integers(0, 255, lost, np.uint8).tobytes()
    fill = {
        "missing": b"",
        "zeros": bytes(lost),
        "noise": noise,
        "again": stream[kept - lost : kept],
    }
    return stream[:kept] + fill[kind] + stream[-2:]


@pytest.mark.parametrize("kind", ["missing", "zeros", "noise", "again"])
@pytest.mark.parametrize(
    "film",
    [
        {"options": {}},
        {"options": {"optimize": True}},
        {"options": {"restart_marker_blocks": 8}},
        {"options": {"progressive": True}},
        {"options": {}, "PhotometricInterpretation": "MONOCHROME1"},
        {"options": {}, "NumberOfFrames": 1},
    ],
    ids=lambda film: "+".join(map(str, [*film["options"], *film][:-1])) or "plain",
)
def test_a_jpeg_whose_second_half_is_not_its_own_is_refused(tmp_path, film, kind):
    elements = dict(film)
    stream = jpeg_bytes(NOISE, **elements.pop("options"))
    for name, jpeg in (("whole", stream), ("damaged", damaged(stream, 0.6, kind))):
        pixels = encapsulate([jpeg])
        data = film_bytes(NOISE, syntax=JPEG, PixelData=pixels, **elements)
        (tmp_path / f"{name}.dcm").write_bytes(data)
    assert film_to_jpg(tmp_path / "whole.dcm")[1]["status"] in ("copied", "encoded")
    reason = "damaged.dcm: truncated or damaged: its JPEG cannot be decoded to its end"
    with pytest.raises(FilmError, match=reason):
        film_to_jpg(tmp_path / "damaged.dcm")
    with pytest.raises(FilmError, match=reason):
        read_film(tmp_path / "damaged.dcm")


def test_large_film_is_not_decoded(monkeypatch):
    """A large film of the usual size is not decoded; half of one is."""
    stream = jpeg_bytes(SMOOTH, quality=85, optimize=True)
    assert 46 < 8 * len(stream) / 128**2 < 92
    decoded = []
    monkeypatch.setattr("chexnet.dicom.film.check_complete", decoded.append)
    whole = film_bytes(SMOOTH, syntax=JPEG, PixelData=encapsulate([stream]))
    assert stored_jpeg(whole)[1] == stream and decoded == []
    for kind in ("missing", "zeros"):
        half = damaged(stream, 0.5, kind)
        stored_jpeg(film_bytes(SMOOTH, syntax=JPEG, PixelData=encapsulate([half])))
        assert decoded.pop() == half


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_blocks": 64}])
def test_large_films_that_end_early(options):
    """Most large films that end early are decoded and then refused."""
    stream = jpeg_bytes(SMOOTH, quality=85, **options)
    assert looks_complete(stream, 1024, 1024)
    places = np.random.default_rng(0).uniform(0.75, 1, 200)
    cuts = [damaged(stream, share, "missing") for share in places]
    passed = [looks_complete(cut, 1024, 1024) for cut in cuts]
    assert sum(passed) <= 15
    for cut in cuts[:20]:
        with pytest.raises(FilmError, match="cannot be decoded to its end"):
            check_complete(cut)


def test_few_genuine_films_are_decoded_to_be_copied(rsna_dir):
    films = sorted((rsna_dir / "stage_2_train_images").glob("*.dcm"))
    complete = half = 0
    for film in films:
        header, jpg = stored_jpeg(film.read_bytes())
        size = header["rows"], header["columns"]
        complete += looks_complete(jpg, *size)
        half += looks_complete(damaged(jpg, 0.5, "missing"), *size)
        half += looks_complete(damaged(jpg, 0.5, "zeros"), *size)
    assert complete > 0.9 * len(films) and half == 0


def test_a_film_gives_the_same_here_and_when_it_is_decoded():
    film = film_bytes(GREY, syntax=JPEG)
    header, jpg = stored_jpeg(film)
    slow = film_of(film)
    assert header == slow.header == {"view": "PA", "sex": "F", "age": 51, "rows": 48, "columns": 64}
    assert jpg == slow.jpg == FRAME
    assert np.array_equal(decoded(jpg), slow.pixels)
    assert SECRET.encode() in film


@pytest.mark.parametrize(
    "change",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"BitsStored": 7, "HighBit": 6},
        {"PixelRepresentation": 1},
        {"WindowCenter": 100, "WindowWidth": 50},
        {"RescaleSlope": -1, "RescaleIntercept": 255},
        {"PixelPaddingValue": 255},
        {"VOILUTSequence": lut(np.arange(256)[::-1], 0, 8)},
        {"ModalityLUTSequence": lut(np.arange(256)[::-1], 0, 8)},
        {"NumberOfFrames": 2},
        {"Rows": 47},
    ],
    ids=lambda change: "+".join(change),
)
def test_whatever_may_change_the_pixels_is_left_to_a_closer_look(change):
    assert stored_jpeg(film_bytes(GREY, syntax=JPEG, **change)) is None


def test_fragments():
    """A frame in several fragments is put together, whatever the table of offsets says."""
    fragments = encapsulate([FRAME[:100], FRAME[100:]], fragments_per_frame=1)
    assert fragments[4:8] == b"\x08\0\0\0"  # offsets of two frames
    film = film_bytes(GREY, syntax=JPEG, PixelData=fragments)
    assert stored_jpeg(film) is None
    assert film_of(film).jpg == FRAME


@pytest.mark.parametrize("syntax", [RAW, J2K])
def test_other_syntaxes_are_left_to_a_closer_look(syntax):
    assert stored_jpeg(film_bytes(GREY, syntax=syntax)) is None


def test_a_film_that_ends_early_is_left_to_a_closer_look():
    film = film_bytes(GREY, syntax=JPEG)
    for length in range(200, len(film) - 8, 17):
        assert stored_jpeg(film[:length]) is None


@pytest.mark.parametrize(("rows", "columns"), [(0, 64), (65535, 65535)])
def test_a_size_that_a_film_cannot_have_is_left_to_a_closer_look(rows, columns):
    assert stored_jpeg(film_bytes(GREY, syntax=JPEG, Rows=rows, Columns=columns)) is None
