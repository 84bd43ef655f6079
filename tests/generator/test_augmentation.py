from concurrent.futures import ThreadPoolExecutor

import imgaug.augmenters as iaa
import numpy as np
import pytest
from imgaug.augmentables.heatmaps import HeatmapsOnImage
from imgaug.augmentables.segmaps import SegmentationMapsOnImage
from imgaug.augmenters.blur import blur_gaussian_

from chexnet.generator import augmented_examples, default_augmenter
from chexnet.generator.augmentation import FilmWarp, SeededAugmenter
from chexnet.labels.boxes import coverage

SIZE = 64
OFF = {"flip": 0, "rotation": 0, "shear": 0, "shift": 0, "scale": 0, "blur": 0}
STRENGTHS = {
    "flip": 1, "rotation": 20, "shear": 16, "shift": 0.2, "scale": 0.3, "blur": 40,
    "brightness": 0.3, "contrast": 0.5,
}  # fmt: skip
# The parameters of these lie in kernels, masks and points, which have no random state of their own.
OTHERS = {
    "Sharpen": iaa.Sharpen(alpha=(0, 1)),
    "Emboss": iaa.Emboss(alpha=(0, 1), strength=(0.5, 1.5)),
    "MotionBlur": iaa.MotionBlur(k=(3, 7), angle=(0, 360)),
    "SimplexNoise": iaa.BlendAlphaSimplexNoise(iaa.Multiply((0.5, 1.5))),
    "RegularGrid": iaa.BlendAlphaRegularGrid((2, 5), (2, 5), iaa.Multiply((0.5, 1.5))),
    "Checkerboard": iaa.BlendAlphaCheckerboard(2, (1, 4), iaa.Add((-30, 30))),
    "LinearGradient": iaa.BlendAlphaHorizontalLinearGradient(iaa.Add((-60, 60))),
    "UniformVoronoi": iaa.UniformVoronoi((10, 40)),
}
MOVES = ["flip", "rotation", "shear", "shift", "scale"]


def film(seed=0):
    return np.random.default_rng(seed).integers(60, 200, (SIZE, SIZE)).astype(np.uint8)


def rectangle(top=20, left=12, height=16, width=24):
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[top : top + height, left : left + width] = 255
    return pixels


def warp(**strengths):
    return FilmWarp(**{"flip": 0, "rotation": 0, "shear": 0, "shift": 0, "scale": 0, **strengths})


@pytest.mark.parametrize("name", STRENGTHS)
def test_each_step_changes_films_and_keeps_their_size_and_dtype(name):
    augmenter = default_augmenter(SIZE, **{**OFF, name: STRENGTHS[name]})
    assert len(augmenter) == 1
    films, _ = augmented_examples(film(), augmenter, count=16)
    assert films.shape == (16, SIZE, SIZE)
    assert films.dtype == np.uint8
    assert sum(not np.array_equal(changed, film()) for changed in films) >= 4


def test_a_strength_of_0_leaves_the_step_out():
    augmenter = default_augmenter(SIZE, **OFF)
    assert len(augmenter) == 0
    films, _ = augmented_examples(film(), augmenter, count=3)
    assert all(np.array_equal(changed, film()) for changed in films)


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_that_makes_no_sense_is_refused(name):
    for value in (-0.1, 1000):
        with pytest.raises(ValueError, match=f"{name}={value}: expected a number from 0 to"):
            default_augmenter(SIZE, **{name: value})


def test_a_flip_is_the_exact_mirror_image():
    films, _ = augmented_examples(film(), warp(flip=1), count=4)
    assert all(np.array_equal(changed, film()[:, ::-1]) for changed in films)


def test_half_flipped_half_blurred():
    """Half of the films are flipped and half are blurred by default."""
    flipped, _ = augmented_examples(film(), warp(flip=0.5), count=400)
    share = np.mean([np.array_equal(changed, film()[:, ::-1]) for changed in flipped])
    assert 0.4 < share < 0.6
    blurred, _ = augmented_examples(
        film(), default_augmenter(SIZE, **{**OFF, "blur": 40}), count=400
    )
    share = np.mean([np.array_equal(changed, film()) for changed in blurred])
    assert 0.4 < share < 0.6


def test_a_shift_moves_by_at_most_its_share_of_the_side():
    spot = np.zeros((SIZE, SIZE), np.uint8)
    spot[30:34, 30:34] = 250
    films, _ = augmented_examples(spot, warp(shift=0.25), count=200)
    rows, columns = np.indices((SIZE, SIZE))
    moved = np.array(
        [((rows * one).sum() / one.sum(), (columns * one).sum() / one.sum()) for one in films / 1.0]
    )
    far = np.abs(moved - 31.5).max(axis=0)
    assert (far <= 16.5).all()
    assert (far > 14).all()
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.25  # x and y are drawn apart


def test_a_rotation_turns_by_at_most_its_angle_about_the_centre():
    # The angle of a line's pixels about the centre, by the second moments.
    line = np.zeros((SIZE, SIZE), np.uint8)
    line[31:33, 8:56] = 255
    films, _ = augmented_examples(line, warp(rotation=10), count=200)
    rows, columns = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    angles = []
    for one in films / 255:
        assert abs((rows * one).sum() / one.sum()) < 0.1
        xx, yy, xy = (
            (a * b * one).sum() for a, b in [(columns,) * 2, (rows,) * 2, (columns, rows)]
        )
        angles.append(np.degrees(np.arctan2(2 * xy, xx - yy) / 2))
    assert max(np.abs(angles)) < 10.3
    assert min(angles) < -9
    assert max(angles) > 9


def test_shear():
    """A shear moves each row along x by its height times the tangent."""
    line = np.zeros((SIZE, SIZE), np.uint8)
    line[:, 31:33] = 255
    films, _ = augmented_examples(line, warp(shear=16), count=100)
    columns = np.arange(SIZE)
    centres = (films * columns).sum(axis=2) / films.sum(axis=2)  # (films, rows)
    slopes = np.array([np.polyfit(np.arange(SIZE), row, 1)[0] for row in centres])
    assert np.degrees(np.arctan(np.abs(slopes))).max() == pytest.approx(15.7, abs=0.5)
    assert centres.mean(axis=1) == pytest.approx(np.full(100, 31.5), abs=0.2)


def test_what_comes_in_from_outside_the_film_is_air():
    films, _ = augmented_examples(np.full((SIZE, SIZE), 200, np.uint8), warp(shift=0.5), count=50)
    assert films.min() == 0


@pytest.mark.parametrize("name", [*MOVES, "all"])
def test_a_mask_stays_on_its_rectangle(name):
    chosen = MOVES if name == "all" else [name]
    augmenter = default_augmenter(SIZE, **{**OFF, **{key: STRENGTHS[key] for key in chosen}})
    films, masks = augmented_examples(
        rectangle(), augmenter, mask=(rectangle() / 255).astype(np.float32), count=40
    )
    assert masks.dtype == np.float32
    assert films.max() == 255
    assert not all(np.array_equal(changed, rectangle()) for changed in films)
    # OpenCV's warp of bytes has 5 bits of a pixel, so up to 1/32 of a step of 255.
    assert np.abs(films / 255 - masks).max() < 0.07


@pytest.mark.parametrize("name", [*MOVES, "all"])
def test_a_coarser_mask_stays_on_its_rectangle_too(name):
    chosen = MOVES if name == "all" else [name]
    augmenter = default_augmenter(SIZE, **{**OFF, **{key: STRENGTHS[key] for key in chosen}})
    coarse = (rectangle() / 255).reshape(32, 2, 32, 2).mean((1, 3)).astype(np.float32)
    films, masks = augmented_examples(rectangle(), augmenter, mask=coarse, count=40)
    from_films = (films / 255).reshape(-1, 32, 2, 32, 2).mean((2, 4))
    # A pixel's border is soft by half a coarse cell; the bulk must agree.
    assert np.abs(from_films - masks).mean() < 0.01
    rows, columns = np.indices((32, 32))
    for one, other in zip(from_films, masks, strict=True):
        for axis in (rows, columns):
            centre = [(axis * some).sum() / some.sum() for some in (one, other)]
            assert centre[0] == pytest.approx(centre[1], abs=0.1)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 1, 1), (0, 0.25, 0.25, 0.5), (0.75, 0.75, 0.25, 0.25), (0.25, 0, 0.5, 0.125)],
    ids=["the whole film", "left edge", "lower right corner", "upper edge"],
)
def test_a_box_at_the_border_of_the_film_stays_on_its_rectangle(box):
    size = 128
    x, y, width, height = (np.array(box) * size).astype(int)
    white = np.zeros((size, size), np.uint8)
    white[y : y + height, x : x + width] = 255
    mask = coverage(np.array([box]), (size, size)).astype(np.float32)
    augmenter = default_augmenter(size, **{**OFF, **{name: STRENGTHS[name] for name in MOVES}})
    films, masks = augmented_examples(white, augmenter, mask=mask, count=40)
    assert len({one.tobytes() for one in films}) > 30  # some leave no white
    assert np.abs(films / 255 - masks).max() < 0.07  # as above


@pytest.mark.parametrize("name", ["blur", "brightness", "contrast"])
def test_grey_values_change_and_the_mask_does_not(name):
    mask = (rectangle() / 255).astype(np.float32)
    augmenter = default_augmenter(SIZE, **{**OFF, name: STRENGTHS[name]})
    films, masks = augmented_examples(film(), augmenter, mask=mask, count=16)
    assert not all(np.array_equal(changed, film()) for changed in films)
    assert all(np.array_equal(moved, mask) for moved in masks)


def test_contrast_and_brightness_go_both_ways():
    """Contrast is multiplied by 0.5 to 1.5 about mid-gray, brightness changes by up to 51."""
    pixels = np.full((SIZE, SIZE), 96, np.uint8)
    pixels[::2] = 160
    settings = {"count": 200, "seed": 3}
    films, _ = augmented_examples(pixels, default_augmenter(SIZE, **OFF, contrast=0.5), **settings)
    factor = np.ptp(films.astype(int), axis=(1, 2)) / 64
    assert 0.5 <= factor.min() < 0.6
    assert 1.4 < factor.max() <= 1.5 + 1 / 64
    assert films.mean() == pytest.approx(128, abs=1)
    films, _ = augmented_examples(
        pixels, default_augmenter(SIZE, **OFF, brightness=0.2), **settings
    )
    change = films.astype(int) - pixels
    assert (change.min(), change.max()) == pytest.approx((-51, 51), abs=4)
    assert abs(change).max() <= 51
    assert (np.ptp(change, axis=(1, 2)) == 0).all()


def test_films_are_augmented_alike_with_and_without_masks():
    augmenter = default_augmenter(SIZE, **STRENGTHS)
    with_masks, _ = augmented_examples(film(), augmenter, mask=np.ones((8, 8), np.float32))
    without, _ = augmented_examples(film(), augmenter)
    assert np.array_equal(with_masks, without)


def test_the_seed_alone_decides():
    augmenter = SeededAugmenter(default_augmenter(SIZE, **STRENGTHS))
    films = np.repeat(film()[None, ..., None], 8, axis=0)
    first, _ = augmenter(films.copy(), [1, 2, 3])
    for other in ([1, 2, 4], [1, 3, 3], [2, 2, 3]):
        assert not np.array_equal(augmenter(films.copy(), other)[0], first)
    assert np.array_equal(augmenter(films.copy(), [1, 2, 3])[0], first)
    assert len({one.tobytes() for one in first}) == 8


def mixture():
    """Of imgaug's own, one that draws per pixel, per film, and a choice of children."""
    return iaa.Sequential(
        [
            default_augmenter(SIZE, **STRENGTHS),
            iaa.Sometimes(0.5, iaa.Multiply((0.8, 1.2))),
            iaa.SomeOf((0, 2), [iaa.Add((-9, 9)), iaa.GammaContrast((0.8, 1.2))]),
            iaa.AdditiveGaussianNoise(scale=(0, 9)),
        ],
        random_order=True,
    )


@pytest.mark.parametrize("name", ["default", "mixture", *OTHERS])
def test_batch_depends_on_its_seed_alone(name):
    """Neither what came before nor other threads change a batch."""
    known = {"default": default_augmenter(SIZE, **STRENGTHS), "mixture": mixture()}
    augmenter = SeededAugmenter({**known, **OTHERS}[name])
    films = np.repeat(film()[None, ..., None], 4, axis=0)

    def digest(k):
        return augmenter(films, [0, k])[0].tobytes()

    alone = [digest(k) for k in range(40)]
    assert len(set(alone)) == 40
    assert [digest(k) for k in range(40)] == alone
    for threads in (4, 8):
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(digest, range(40))) == alone
            assert list(pool.map(digest, range(39, -1, -1))) == alone[::-1]


def test_the_default_augmenter_draws_nothing_in_advance():
    assert "AutoPrefetcher" in str(iaa.Add((-9, 9)))
    assert "AutoPrefetcher" not in str(default_augmenter(SIZE, **STRENGTHS))


def test_given_augmenter_is_copied():
    """The augmenter that was given is left as it is and its changes have no effect."""
    given = iaa.Sequential([iaa.Add((-9, 9), seed=1)], seed=2)
    films = np.repeat(film()[None, ..., None], 4, axis=0)
    seeded = SeededAugmenter(given)
    state = str(given[0].random_state.state)
    first, _ = seeded(films, [0])
    assert str(given[0].random_state.state) == state
    given.append(iaa.Invert(1.0))
    with ThreadPoolExecutor(1) as pool:
        assert np.array_equal(pool.submit(seeded, films, [0]).result()[0], first)
    assert np.array_equal(films[3, ..., 0], film())


def test_an_augmenter_that_changes_the_size_or_dtype_is_refused():
    films = np.repeat(film()[None, ..., None], 4, axis=0)
    smaller = iaa.Resize({"height": 32, "width": 32})
    with pytest.raises(ValueError, match="expected films as uint8"):
        SeededAugmenter(smaller)(films, [0])


def test_what_the_warp_cannot_carry():
    """What the warp cannot carry is refused and not left behind."""
    classes = SegmentationMapsOnImage(film()[..., None] > 100, shape=(SIZE, SIZE, 1))
    with pytest.raises(NotImplementedError, match=r"not .*segmentation_maps"):
        warp(flip=1)(image=film()[..., None], segmentation_maps=classes)


def test_the_warp_works_as_any_augmenter_of_imgaug():
    films = np.repeat(film()[None, ..., None], 4, axis=0)
    mirrored = iaa.Sequential([iaa.Sometimes(1.0, warp(flip=1))])(images=films)
    assert np.array_equal(mirrored, films[:, :, ::-1])
    assert warp(flip=1).get_parameters() == [1, 0, 0, 0, 0]
    colour = np.stack([film(), film(1), film(2)], axis=-1)
    assert np.array_equal(warp(flip=1)(image=colour), colour[:, ::-1])
    alone = HeatmapsOnImage(np.float32(rectangle() / 255), (SIZE, SIZE, 1))
    assert np.array_equal(warp(flip=1)(heatmaps=alone).get_arr(), rectangle()[:, ::-1] / 255)


@pytest.mark.parametrize("largest", [1, 3])
def test_the_maps_undo_mirror_then_rotation_and_size_then_shear(largest):
    strengths = {"rotation": 60 * largest, "shear": 20 * largest, "scale": 0.3 * largest}
    draws = np.random.default_rng(3).uniform(-1, 1, (5, 20))
    mirrored = np.arange(20) % 2 == 0
    inverse = warp(**strengths)._inverse_maps(mirrored, draws)
    for one, mirror, draw in zip(inverse, mirrored, draws.T, strict=True):
        angle, slope = np.radians(strengths["rotation"] * draw[0]), strengths["shear"] * draw[1]
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        sheared = np.array([[1, -np.tan(np.radians(slope))], [0, 1]])
        forwards = sheared @ turned @ np.diag([-1 if mirror else 1, 1])
        forwards *= 1 + strengths["scale"] * draw[2]
        assert one @ forwards == pytest.approx(np.eye(2), abs=1e-12)


@pytest.mark.parametrize("map_size", [(64, 32), (16, 64)])
def test_a_mask_with_other_sides_than_the_film_moves_with_it(map_size):
    height, width = map_size
    cells = (height, SIZE // height, width, SIZE // width)
    coarse = (rectangle() / 255).reshape(cells).mean((1, 3)).astype(np.float32)
    augmenter = default_augmenter(SIZE, **{**OFF, **{key: STRENGTHS[key] for key in MOVES}})
    films, masks = augmented_examples(rectangle(), augmenter, mask=coarse, count=40)
    from_films = (films / 255).reshape(-1, *cells).mean((2, 4))
    assert np.abs(from_films - masks).mean() < 0.02
    rows, columns = np.indices(map_size)
    for one, other in zip(from_films, masks, strict=True):
        for axis in (rows, columns):
            centre = [(axis * some).sum() / some.sum() for some in (one, other)]
            assert centre[0] == pytest.approx(centre[1], abs=0.3)


@pytest.mark.parametrize(("size", "blur"), [(512, 0.5), (256, 1.0)])
def test_blur(size, blur):
    """The strength is in pixels at a side of 512."""
    largest = 0.5
    pixels = np.random.default_rng(3).integers(0, 256, (size, size)).astype(np.uint8)
    augmenter = default_augmenter(size, **{**OFF, "blur": blur})
    films, _ = augmented_examples(pixels, augmenter, count=60)
    candidates = [
        blur_gaussian_(pixels[..., None].copy(), sigma)[..., 0]
        for sigma in np.arange(0, largest + 1e-9, 0.01)
    ]
    near = np.array([[np.abs(f.astype(int) - c).max() for c in candidates] for f in films])
    assert near.min(axis=1).max() <= 5
    assert near.argmin(axis=1).max() >= 45
