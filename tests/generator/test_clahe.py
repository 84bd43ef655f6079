"""Tests of our CLAHE: OpenCV's is the oracle."""

import platform
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chexnet.dicom import read_film
from chexnet.generator import equalise

# OpenCV's builds for other processors may multiply and add in one step, without rounding between.
EXACT = platform.machine() in {"x86_64", "AMD64"}


def opencvs(film, clip_limit, tiles):
    return cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(film)


def assert_alike(made, expected):
    if EXACT:
        assert np.array_equal(made, expected)
    else:
        apart = np.abs(made.astype(int) - expected)
        assert apart.max() <= 1
        assert apart.mean() < 1e-3


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    clip_limit=st.sampled_from([1e-3, 0.5, 1.0, 2.0, 3.3, 40.0, 1e4]),
    tiles=st.integers(1, 20),
    greys=st.integers(1, 256),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_film_of_any_shape_is_equalised_as_opencv_does(shape, clip_limit, tiles, greys, seed):
    film = np.random.default_rng(seed).integers(0, greys, shape).astype(np.uint8)
    assert_alike(equalise(film, clip_limit, tiles), opencvs(film, clip_limit, tiles))


@pytest.mark.parametrize("clip_limit", [2.0, 4.0])
def test_genuine_films_are_equalised_as_opencv_does(rsna_dir, clip_limit):
    for path in sorted((rsna_dir / "stage_2_train_images").iterdir())[:40]:
        film = read_film(path).pixels
        assert_alike(equalise(film, clip_limit), opencvs(film, clip_limit, 8))


def test_a_limit_too_high_for_opencvs_integers_clips_nothing():
    film = np.random.default_rng(3).integers(100, 110, (64, 64)).astype(np.uint8)
    assert np.array_equal(equalise(film, 1e30), equalise(film, 256))
    assert np.array_equal(equalise(film, np.inf), equalise(film, 256))


def test_a_film_may_be_equalised_in_place_or_into_other_memory():
    film = np.random.default_rng(0).integers(0, 200, (70, 90)).astype(np.uint8)
    expected = equalise(film)
    target = np.zeros_like(film)
    assert equalise(film, out=target) is target
    assert np.array_equal(target, expected)
    assert equalise(film, out=film) is film
    assert np.array_equal(film, expected)


def test_a_part_of_a_film_is_equalised_like_a_copy_of_it():
    film = np.random.default_rng(1).integers(0, 200, (100, 120)).astype(np.uint8)
    part = film[10:74:2, 5:101]
    part.setflags(write=False)
    assert np.array_equal(equalise(part), equalise(part.copy()))


def test_threads_equalise_films_of_their_own():
    films = np.random.default_rng(2).integers(0, 256, (40, 96, 96)).astype(np.uint8)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(equalise, films))
    assert np.array_equal(together, [equalise(film) for film in films])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"film": np.zeros((8, 8))}, r"float64 \(8, 8\); allowed is uint8"),
        ({"film": np.zeros((8, 8, 1), np.uint8)}, r"uint8 \(8, 8, 1\); allowed"),
        ({"film": np.zeros((0, 8), np.uint8)}, r"uint8 \(0, 8\); allowed"),
        ({"clip_limit": 0.0}, "clip_limit=0.0"),
        ({"clip_limit": np.nan}, "clip_limit=nan"),
        ({"tiles": 0}, "tiles=0"),
        ({"tiles": 8.0}, "tiles=8.0: .*whole tiles"),
        ({"out": np.zeros((8, 7), np.uint8)}, r"out: uint8 \(8, 7\); allowed is uint8 \(8, 8\)"),
        ({"out": np.zeros((8, 8), np.float32)}, "out: float32"),
    ],
)
def test_what_is_no_film_or_no_setting_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        equalise(**{"film": np.zeros((8, 8), np.uint8), **change})
