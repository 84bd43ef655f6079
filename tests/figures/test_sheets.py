import cv2
import numpy as np
import pydicom
import pytest

from chexnet.dicom import convert_folder
from chexnet.figures import conversion_sheet, film_sheet
from chexnet.figures.sheets import stored_values, unusual_films
from chexnet.phantom import write_phantom_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Twelve phantom films, one of them stored as a negative, one of another size."""
    folder = tmp_path_factory.mktemp("study")
    source = write_phantom_study(folder / "study", films=12, film_size=128)
    source = source / "stage_2_train_images"
    paths = sorted(source.glob("*.dcm"))
    negative = pydicom.dcmread(paths[3])
    pixels = negative.pixel_array
    negative.decompress()
    negative.PhotometricInterpretation = "MONOCHROME1"
    negative.PixelData = (255 - pixels).tobytes()
    negative.save_as(paths[3])
    small = pydicom.dcmread(paths[5])
    small.decompress()
    small.Rows = 64
    small.PixelData = pixels[:64].tobytes()
    small.save_as(paths[5])
    films = convert_folder(source, folder / "jpg", progress=False)
    assert (films["status"] != "failed").all()
    return source, folder / "jpg", films, paths


def test_order_of_unusual_films(study):
    """Films that had to be changed and rare sizes come first, then dark and bright films."""
    _, jpg, films, paths = study
    odd = unusual_films(films, jpg, count=5)
    assert len(odd) == 5
    assert set(odd["image_id"][:2]) == {paths[3].stem, paths[5].stem}
    assert odd["image_id"].is_unique
    assert odd["why"].iloc[-2:].str.startswith(("dark", "bright")).all()


def test_darkest_and_brightest_by_turns(study):
    """Where all films are alike, the darkest and the brightest come by turns."""
    _, jpg, films, _ = study
    alike = films[(films["status"] == "copied") & (films["rows"] == 128)]
    odd = unusual_films(alike, jpg, count=4)
    assert [why.split(",")[0] for why in odd["why"]] == ["dark", "bright"] * 2
    assert odd["rows"].eq(128).all()


def test_failed_films(study):
    """A failed film is never shown, and no converted film at all is an error."""
    _, jpg, films, paths = study
    failed = films.assign(
        status=films["status"].where(films["image_id"] != paths[3].stem, "failed")
    )
    assert paths[3].stem not in set(unusual_films(failed, jpg, count=12)["image_id"])
    with pytest.raises(ValueError, match=r"none of \d+ was converted"):
        unusual_films(films.assign(status="failed"), jpg)


def test_stored_values_of_a_negative(study):
    """Stored values are shown uninterpreted, so a negative stays one."""
    source, jpg, films, paths = study
    negative = stored_values(paths[3]).astype(int)
    sheet = conversion_sheet(films, source, jpg, count=3)
    shown = [np.asarray(ax.images[0].get_array()).astype(int) for ax in sheet.axes if ax.images]
    assert len(shown) == 6
    at = list(unusual_films(films, jpg, count=3)["image_id"]).index(paths[3].stem)
    np.testing.assert_array_equal(shown[2 * at], negative)
    assert np.abs(255 - negative - shown[2 * at + 1]).mean() < 3
    titles = [ax.get_title() for ax in sheet.axes if ax.images]
    assert "MONOCHROME1" in titles[2 * at].replace("\n", " ")


def test_stored_values_of_twelve_bits(study, tmp_path):
    """Twelve bits are shown in their own range."""
    film = pydicom.dcmread(study[3][0])
    film.decompress()
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, 12, 11
    values = np.linspace(0, 4095, 128 * 128).astype(np.uint16).reshape(128, 128)
    film.PixelData = values.tobytes()
    film["PixelData"].VR = "OW"
    film.save_as(tmp_path / "deep.dcm")
    found = stored_values(tmp_path / "deep.dcm")
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, values / 4095 * 255, atol=1)


def test_a_stored_png_or_jpg_is_shown_with_the_range_of_its_bits(tmp_path):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = np.dstack([gray.astype(np.uint16) * 257] * 3)
    for name, pixels in (("8.png", gray), ("16.png", deep)):
        cv2.imwrite(str(tmp_path / name), pixels)
        np.testing.assert_array_equal(stored_values(tmp_path / name), gray)


def film(rows: int = 60, columns: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns), dtype=np.uint8)


def test_a_sheet_shows_every_film_with_its_own_title():
    films = [film(), film(30, 90), film(50, 50)]
    sheet = film_sheet(films, titles=["raw", "converted", "mirrored"], columns=2)
    shown = [ax for ax in sheet.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["raw", "converted", "mirrored"]
    assert len(sheet.axes) == 4
    assert not sheet.axes[3].axison
    sheet.draw_without_rendering()
    for ax, pixels in zip(shown, films, strict=True):
        inches = ax.get_window_extent()
        assert inches.height / inches.width == pytest.approx(
            pixels.shape[0] / pixels.shape[1], rel=0.02
        )


def test_a_sheet_of_nothing_or_of_unequal_lists_is_refused():
    with pytest.raises(ValueError, match="0 films"):
        film_sheet([])
    with pytest.raises(ValueError, match="2 films, 1 titles"):
        film_sheet([film(), film()], titles=["one"])


def test_outline_of_a_mask():
    """A mask is outlined where it lies, and the film stays upright."""
    mask = np.zeros((20, 10), np.float32)
    mask[2:6, 1:4] = 1  # near the top left
    sheet = film_sheet([np.zeros((100, 50), np.uint8)], masks=[mask])
    ax = next(ax for ax in sheet.axes if ax.images)
    assert ax.get_ylim() == (100, 0)
    assert ax.get_xlim() == (0, 50)
    (outline,) = ax.collections
    points = np.concatenate([path.vertices for path in outline.get_paths()])
    # Within the quarter of a cell by which an outline at a half may differ: cells are 5 pixels.
    np.testing.assert_allclose(points.min(axis=0), [5, 10], atol=3.5)
    np.testing.assert_allclose(points.max(axis=0), [20, 30], atol=3.5)
