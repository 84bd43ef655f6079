"""Tests of the warp in strips and of the blur, each beside the plain way of doing it."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from imgaug.augmentables.bbs import BoundingBox, BoundingBoxesOnImage
from imgaug.augmentables.heatmaps import HeatmapsOnImage
from imgaug.augmentables.kps import Keypoint, KeypointsOnImage
from imgaug.augmenters.blur import blur_gaussian_

from chexnet.generator import augmentation as warp
from chexnet.generator.augmentation import FilmBlur, FilmWarp

USUAL = {"flip": 0.5, "rotation": 10, "shear": 16, "shift": 20 / 512, "scale": 0.2}
EXTREME = {"flip": 0.5, "rotation": 180, "shear": 60, "shift": 1, "scale": 0.9}


def film(rows, columns):
    noise = np.random.default_rng(0).integers(0, 256, (rows, columns)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), None, 1, 255, cv2.NORM_MINMAX)


def drawn(strengths, shape, count=60):
    """Inverse maps on the grid, and shifts as a share of the side."""
    draws = np.random.default_rng(1).uniform(-1, 1, (5, count))
    inverse = FilmWarp(**strengths)._inverse_maps(np.arange(count) % 2 == 0, draws)
    return warp._on_grid(inverse, shape), strengths["shift"] * draws[3:].T


def in_one(pixels, inverse, shift):
    """OpenCV's warp of the whole film."""
    rows, columns = pixels.shape
    centre = np.array([columns - 1, rows - 1]) / 2
    offset = centre - inverse @ (centre + shift * (columns, rows))
    matrix = np.column_stack([inverse, offset])
    return cv2.warpAffine(pixels, matrix, (columns, rows), flags=warp._BACKWARDS)


@pytest.mark.parametrize("strengths", [USUAL, EXTREME], ids=["usual", "extreme"])
def test_the_maps_undo_mirror_then_rotation_and_size_then_shear(strengths):
    draws = np.random.default_rng(3).uniform(-1, 1, (5, 20))
    mirrored = np.arange(20) % 2 == 0
    inverse = FilmWarp(**strengths)._inverse_maps(mirrored, draws)
    for one, mirror, draw in zip(inverse, mirrored, draws.T, strict=True):
        angle, slope = np.radians(strengths["rotation"] * draw[0]), strengths["shear"] * draw[1]
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        sheared = np.array([[1, -np.tan(np.radians(slope))], [0, 1]])
        forwards = sheared @ turned @ np.diag([-1 if mirror else 1, 1])
        forwards *= 1 + strengths["scale"] * draw[2]
        assert one @ forwards == pytest.approx(np.eye(2), abs=1e-12)


@pytest.mark.parametrize("strengths", [USUAL, EXTREME], ids=["usual", "extreme"])
@pytest.mark.parametrize("shape", [(512, 512), (224, 224), (228, 300), (400, 230), (226, 256)])
def test_a_warp_in_strips_is_the_warp_of_the_whole_film(shape, strengths, monkeypatch):
    stripped = []
    in_strips = warp._in_strips
    monkeypatch.setattr(
        warp, "_in_strips", lambda films, *given: stripped.extend(films) or in_strips(films, *given)
    )
    pixels = film(*shape)
    inverse, shifts = drawn(strengths, shape)
    moved = np.repeat(pixels[np.newaxis, ..., np.newaxis], len(inverse), axis=0)
    warp._warp(moved, inverse, shifts)
    for one, *given in zip(moved, inverse, shifts, strict=True):
        assert np.array_equal(one[..., 0], in_one(pixels, *given))
    if shape[0] % 4:
        assert not stripped  # no four equal strips
    else:
        assert len(stripped) == 60 if strengths is USUAL else len(stripped) > 20


def test_a_film_that_is_shifted_out_of_sight_leaves_air():
    pixels = film(256, 256)
    warp._warp(pixels[np.newaxis, ..., np.newaxis], np.eye(2)[np.newaxis], np.array([[1.1, 0.0]]))
    assert not pixels.any()


@pytest.mark.parametrize("strengths", [USUAL, EXTREME], ids=["usual", "extreme"])
def test_films_that_do_not_lie_in_one_piece_are_warped_alike(strengths):
    inverse, shifts = drawn(strengths, (256, 256), count=12)
    alike = np.repeat(film(256, 256)[np.newaxis, ..., np.newaxis], 12, axis=0)
    spaced = np.zeros((12, 512, 512, 1), np.uint8)[:, ::2, ::2]
    spaced[:] = alike
    warp._warp(alike, inverse, shifts)
    warp._warp(spaced, inverse, shifts)
    assert np.array_equal(spaced, alike)


@pytest.mark.parametrize("shape", [(512, 512), (224, 300)])
def test_the_grid_moves_nothing_by_more_than_a_pixel(shape):
    maps = np.random.default_rng(2).uniform(-2, 2, (50, 2, 2))
    edge = np.array([shape[1], shape[0]]) / 2
    for one in maps:
        moved = (warp._on_grid(one, shape) - one) * edge
        assert np.abs(moved).max() <= 1
        assert np.abs(moved).max() > 0
        assert np.array_equal(warp._on_grid(one, (96, 96)), one)


def test_a_mask_stays_on_its_rectangle_in_a_film_large_enough_for_strips():
    pixels = np.zeros((20, 256, 256, 1), np.uint8)
    pixels[:, 60:150, 30:110] = 255
    masks = [HeatmapsOnImage((one / 255).astype(np.float32), (256, 256, 1)) for one in pixels]
    changed, moved = FilmWarp(**USUAL)(images=pixels, heatmaps=masks)
    for one, mask in zip(changed, moved, strict=True):
        assert one.max() == 255
        assert not np.array_equal(one, pixels[0])
        # OpenCV's warp of bytes has 5 bits of a pixel, so up to 1/32 of a step of 255.
        assert np.abs(one / 255 - mask.arr_0to1).max() < 0.07


@pytest.mark.parametrize("shape", [(256, 256, 1), (64, 80, 1)])
def test_points_go_where_the_film_under_them_goes(shape):
    pixels = np.zeros((30, *shape), np.uint8)
    rows, columns = shape[0] // 3, shape[1] // 4
    pixels[:, rows - 2 : rows + 3, columns - 2 : columns + 3] = 255
    points = [KeypointsOnImage([Keypoint(columns + 0.5, rows + 0.5)], shape) for _ in pixels]
    changed, moved = FilmWarp(**USUAL)(images=pixels, keypoints=points)
    assert not np.array_equal(changed, pixels)
    for one, there in zip(changed, moved, strict=True):
        light = one[..., 0].astype(float) / one.sum()
        row, column = (light * np.indices(shape[:2])).sum(axis=(1, 2))
        assert there.to_xy_array()[0] == pytest.approx((column + 0.5, row + 0.5), abs=0.2)


def test_a_box_stays_on_what_it_encloses():
    pixels = np.zeros((30, 256, 300, 1), np.uint8)
    pixels[:, 60:150, 90:210] = 255
    boxes = [BoundingBoxesOnImage([BoundingBox(90, 60, 210, 150)], (256, 300, 1)) for _ in pixels]
    upright = USUAL | {"rotation": 0, "shear": 0}
    changed, moved = FilmWarp(**upright)(images=pixels, bounding_boxes=boxes)
    for one, box in zip(changed[..., 0] > 127, moved, strict=True):
        down, across = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        found = (across[0], down[0], across[-1] + 1, down[-1] + 1)
        assert box.to_xyxy_array()[0] == pytest.approx(found, abs=0.6)
    none = [BoundingBoxesOnImage([], (256, 300, 1))]
    assert not FilmWarp(**USUAL)(images=pixels[:1], bounding_boxes=none)[1][0].bounding_boxes


def test_threads_do_not_share_the_memory_they_warp_in():
    pixels, (inverse, shifts) = film(256, 256), drawn(USUAL, (256, 256), count=200)

    def moved(start):
        some = slice(start, start + 4)
        changed = np.repeat(pixels[np.newaxis, ..., np.newaxis], 4, axis=0)
        warp._warp(changed, inverse[some], shifts[some])
        return changed.tobytes()

    alone = [moved(start) for start in range(0, 200, 4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(moved, range(0, 200, 4))) == alone


def test_the_blur_is_imgaugs_but_for_rounding():
    for sigma in np.linspace(0.01, 0.6, 60):
        pixels = film(64, 48)
        expected = blur_gaussian_(pixels.copy()[..., np.newaxis], sigma)[..., 0]
        steps = FixedDraws(sigma)
        blurred = FilmBlur(sigma=1)._augment_batch_(Films([pixels[..., np.newaxis]]), steps, [], 0)
        assert np.abs(blurred.images[0][..., 0].astype(int) - expected).max() <= 1


class FixedDraws:
    """Draws one number always."""

    def __init__(self, number):
        self.number = number

    def uniform(self, low, high, shape):
        return np.full(shape, self.number)


class Films:
    """As much of a batch as the blur looks at."""

    def __init__(self, images):
        self.images, self.nb_rows = images, len(images)


def test_a_blur_left_out_would_have_changed_no_byte():
    pixels = np.random.default_rng(3).integers(0, 256, (200, 200)).astype(np.uint8)
    for sigma in np.linspace(0.05, warp._FAINTEST - 1e-6, 20):
        assert np.array_equal(cv2.GaussianBlur(pixels, (5, 5), sigma), pixels)
    assert not np.array_equal(cv2.GaussianBlur(pixels, (5, 5), 0.3), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_films_of_other_types_and_channels_are_blurred_too(channels):
    noise = np.random.default_rng(4).random((40, 40, channels)).astype(np.float32)
    for pixels, near in ((noise, 1e-6), ((noise * 255).astype(np.uint8), 1)):
        changed = pixels.copy()
        FilmBlur(sigma=1)._augment_batch_(Films([changed]), FixedDraws(0.8), [], 0)
        expected = cv2.GaussianBlur(pixels, (0, 0), 0.8).reshape(pixels.shape)
        assert np.abs(changed.astype(float) - expected).max() <= near
        assert not np.array_equal(changed, pixels)
