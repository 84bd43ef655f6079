"""Random changes of training films, and of the masks that belong to them, with imgaug."""

import copy
import threading
from collections.abc import Sequence
from typing import Any

import cv2
import imgaug.augmenters as iaa
import imgaug.parameters as iap
import numpy as np
from imgaug.augmentables.heatmaps import HeatmapsOnImage
from imgaug.random import RNG

from chexnet.files import check_number

# The original shifted its films by up to 20 pixels at a side of 512.
ORIGINAL_SHIFT = 20 / 512


class FilmWarp(iaa.Augmenter):
    """Mirror image, rotation, shear, scale and shift of square films in one interpolation.

    About the center of the film, bilinear, 0 from outside. Carries images and heat maps.
    """

    # iaa.Fliplr and iaa.Affine do the same, too slowly: 0.60 ms a film of 512 pixels with the blur,
    # against 0.41 ms. That is 141 and 207 times the speed of the original's generator; 150 are
    # required (docs/performance.md).

    def __init__(
        self, *, flip: float, rotation: float, shear: float, shift: float, scale: float
    ) -> None:
        """Strengths as in `chexnet.generator.default_augmenter`."""
        super().__init__()
        self.flip, self.rotation, self.shear = flip, rotation, shear
        self.shift, self.scale = shift, scale

    def get_parameters(self) -> list[float]:
        """The five strengths."""
        return [self.flip, self.rotation, self.shear, self.shift, self.scale]

    def _augment_batch_(self, batch: Any, random_state: RNG, parents: Any, hooks: Any) -> Any:
        others = {column.name for column in batch.columns} - {"images", "heatmaps"}
        if others:
            raise NotImplementedError(f"FilmWarp moves images and heatmaps, not {sorted(others)}")
        # Always the same draws in the same order: a strength changes nothing else.
        mirrored = random_state.random((batch.nb_rows,)) < self.flip
        draws = random_state.uniform(-1.0, 1.0, (5, batch.nb_rows))
        inverse = self._inverse_maps(mirrored, draws)
        shifts = self.shift * draws[3:].T
        if batch.images is not None:
            for image, *moves in zip(batch.images, inverse, shifts, strict=True):
                image[...] = _warp(image, *moves)
        for heatmap, *moves in zip(batch.heatmaps or (), inverse, shifts, strict=False):
            heatmap.arr_0to1 = _warp(heatmap.arr_0to1, *moves)
        return batch

    def _inverse_maps(self, mirrored: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Inverse of shear @ rotation @ mirror, ``(n, 2, 2)``, acting on (x, y)."""
        angle = np.radians(self.rotation) * draws[0]
        slope = np.tan(np.radians(self.shear) * draws[1])
        size = 1 + self.scale * draws[2]
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        side = np.where(mirrored, -1, 1)
        maps = [[side * cos, side * (sin + slope * cos)], [-sin, cos - slope * sin]]
        return np.array(maps).transpose(2, 0, 1)


def _warp(pixels: np.ndarray, inverse: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Moves ``(h, w, channels)`` pixels: a square film or its heat map, of any h and w."""
    # `inverse` takes (x, y) about the center to where it came from; `shift` is shares of w and h.
    height, width = pixels.shape[:2]
    size = np.array([width, height])
    matrix = np.empty((2, 3))
    matrix[:, :2] = inverse * size[:, np.newaxis] / size  # in pixels, which need not be square
    center = (size - 1) / 2
    matrix[:, 2] = center - matrix[:, :2] @ (center + shift * size)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pixels, matrix, (width, height), flags=flags).reshape(pixels.shape)


def default_augmenter(
    image_size: int,
    *,
    flip: float = 0.5,
    rotation: float = 10.0,
    shear: float = 16.0,
    shift: float = ORIGINAL_SHIFT,
    scale: float = 0.0,
    blur: float = 0.5,
    brightness: float = 0.0,
    contrast: float = 0.0,
) -> iaa.Sequential:
    """Makes the augmenter of training: flip, rotation, shear and shift, then sometimes blur.

    The defaults are those of the original code. 0 leaves a step out; an angle, shift or other
    change is the largest, in both directions. Any other imgaug augmenter that keeps the size and
    dtype of a film can be used instead.

    Args:
        image_size: side of the films in pixels.
        flip: probability of a left-right mirror image, 0 to 1.
        rotation: degrees, 0 to 180.
        shear: degrees, along x, 0 to 60.
        shift: along x, and along y, as a share of the side, 0 to 1.
        scale: change of size as a share, 0 to 0.9; 0.1 is a factor of 0.9 to 1.1.
        blur: largest sigma of the blur of every second film, pixels at a side of 512, 0 to 100.
        brightness: change of all gray values as a share of 255, 0 to 1.
        contrast: change of contrast about mid-gray as a share, 0 to 1.

    Returns:
        an augmenter of uint8 films ``(n, S, S, 1)`` and their heat maps. Pixels from outside the
        film are 0 = air.

    Raises:
        ValueError: a strength is out of range.

    Example:
        >>> import numpy as np
        >>> from chexnet.generator import default_augmenter
        >>> augmenter = default_augmenter(64, rotation=5)
        >>> augmenter(images=np.zeros((4, 64, 64, 1), np.uint8)).shape
        (4, 64, 64, 1)
    """
    given = {
        "flip": (flip, 1), "rotation": (rotation, 180), "shear": (shear, 60), "shift": (shift, 1),
        "scale": (scale, 0.9), "blur": (blur, 100), "brightness": (brightness, 1),
        "contrast": (contrast, 1),
    }  # fmt: skip
    check_number("image_size", image_size, integer=True, least=1)
    for name, (value, most) in given.items():
        check_number(name, value, least=0, most=most)
    steps: list[iaa.Augmenter] = []
    if flip or rotation or shear or shift or scale:
        steps.append(FilmWarp(flip=flip, rotation=rotation, shear=shear, shift=shift, scale=scale))
    # Numbers that imgaug draws in advance for later batches would make a batch depend on others.
    with iap.no_prefetching():
        if blur:
            largest = blur * image_size / 512
            # A sigma below 0 becomes 0, which leaves the film as it is: half of the films.
            sigma = iap.Clip(iap.Uniform(-largest, largest), 0, None)
            steps.append(iaa.GaussianBlur(sigma))
        if contrast:
            steps.append(iaa.LinearContrast((1 - contrast, 1 + contrast)))
        if brightness:
            gray_values = round(brightness * 255)
            steps.append(iaa.Add((-gray_values, gray_values)))
    return iaa.Sequential(steps)


class SeededAugmenter:
    """An imgaug augmenter whose result depends on the seed of the batch alone, in any thread.

    Each thread has a copy, which is seeded before each batch. This is not enough for
    ``imgcorruptlike``, which draws from NumPy's global state, and for ``FrequencyNoise``, which
    keeps noise of earlier batches.
    """

    def __init__(self, augmenter: iaa.Augmenter) -> None:
        """Copies the augmenter, so that later changes of it have no effect."""
        self._augmenter = copy.deepcopy(augmenter)
        self._of_thread = threading.local()

    def __call__(
        self, films: np.ndarray, seed: Sequence[int], masks: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Augments films uint8 ``(n, S, S, 1)`` and moves masks float32 ``(n, h, w, c)``."""
        if not hasattr(self._of_thread, "augmenter"):
            self._of_thread.augmenter = copy.deepcopy(self._augmenter)
        augmenter = self._of_thread.augmenter
        augmenter.seed_(RNG(np.random.SeedSequence(seed)))
        if masks is None:
            changed, moved = augmenter(images=films), None
        else:
            shape = films.shape[1:]
            heatmaps = [HeatmapsOnImage(mask, shape) for mask in masks]
            changed, heatmaps = augmenter(images=films, heatmaps=heatmaps)
            moved = np.stack([heatmap.arr_0to1 for heatmap in heatmaps])
        changed = np.asarray(changed)
        if changed.shape != films.shape or changed.dtype != films.dtype:
            raise ValueError(
                f"augmenter {augmenter.name}: expected films as {films.dtype} {films.shape}, got "
                f"{changed.dtype} {changed.shape}"
            )
        return changed, moved


def augmented_examples(
    film: np.ndarray,
    augmenter: iaa.Augmenter,
    *,
    mask: np.ndarray | None = None,
    count: int = 8,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Augments one film several times, for a contact sheet.

    Args:
        film: uint8 ``(S, S)``.
        augmenter: as in training.
        mask: float32 ``(h, w)`` in [0, 1], such as `chexnet.labels.box_masks` makes.
        count: number of augmented copies, at least 1.
        seed: of the random changes, 0 or above.

    Returns:
        films uint8 ``(count, S, S)`` and masks float32 ``(count, h, w)`` or None.

    Raises:
        ValueError: the augmenter changed the size or dtype of a film, or a number is out of range.

    Example:
        >>> import numpy as np
        >>> from chexnet.generator import augmented_examples, default_augmenter
        >>> film, mask = np.zeros((64, 64), np.uint8), np.ones((8, 8), np.float32)
        >>> films, masks = augmented_examples(film, default_augmenter(64), mask=mask, count=3)
        >>> films.shape, masks.shape
        ((3, 64, 64), (3, 8, 8))
    """
    check_number("count", count, integer=True, least=1)
    check_number("seed", seed, integer=True, least=0)
    films = np.repeat(film[np.newaxis, ..., np.newaxis], count, axis=0)
    masks = None if mask is None else np.repeat(mask[np.newaxis, ..., np.newaxis], count, axis=0)
    changed, moved = SeededAugmenter(augmenter)(films, [seed], masks)
    return changed[..., 0], None if moved is None else moved[..., 0]
