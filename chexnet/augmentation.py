"""Random changes of training films, and of the masks that belong to them, with imgaug."""

import copy
import threading
from collections.abc import Sequence

import imgaug.augmenters as iaa
import imgaug.parameters as iap
import numpy as np
from imgaug.augmentables.batches import _BatchInAugmentation
from imgaug.augmentables.heatmaps import HeatmapsOnImage
from imgaug.random import RNG

from chexnet.warp import FilmBlur, FilmWarp

__all__ = [
    "FilmBlur",
    "FilmWarp",
    "SeededAugmenter",
    "augmented_examples",
    "default_augmenter",
]

# The original shifted its films by up to 20 pixels at a side of 512.
ORIGINAL_SHIFT = 20 / 512


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
    """The original's family: flip, rotation, shear and shift in one warp, then sometimes blur.

    A strength of 0 leaves its step out. Any other imgaug augmenter that keeps a film's size and
    dtype can take this one's place.

    Args:
        image_size: side of the films in pixels; blur is given in pixels of 512-pixel films.
        flip: probability of a left-right mirror image, 0 to 1.
        rotation: largest angle in degrees, either way.
        shear: largest angle in degrees, along x, either way.
        shift: largest shift along x, and along y, as a share of the side, either way.
        scale: largest change of size as a share, either way: 0.1 is 0.9 to 1.1.
        blur: largest sigma of the Gaussian blur that every second film gets, in pixels of a
            512-pixel film.
        brightness: largest change of all grey values as a share of 255, either way.
        contrast: largest change of contrast about mid-grey as a share, either way.

    Returns:
        an augmenter of uint8 films ``(n, S, S, 1)``, and with them of imgaug's heat maps, boxes,
        key points, lines and polygons. What the warp brings in from outside the film is 0 = air.

    Raises:
        ValueError: a strength is outside what is stated above.
    """
    given = {
        "flip": (flip, 1), "rotation": (rotation, 180), "shear": (shear, 60), "shift": (shift, 1),
        "scale": (scale, 0.9), "blur": (blur, 100), "brightness": (brightness, 1),
        "contrast": (contrast, 1),
    }  # fmt: skip
    for name, (value, most) in given.items():
        if not 0 <= value <= most:
            raise ValueError(f"default_augmenter: {name}={value}; allowed is 0 to {most}")
    steps = []
    if flip or rotation or shear or shift or scale:
        steps.append(FilmWarp(flip=flip, rotation=rotation, shear=shear, shift=shift, scale=scale))
    if blur:
        steps.append(FilmBlur(sigma=blur * image_size / 512))
    if contrast:
        steps.append(iaa.LinearContrast((1 - contrast, 1 + contrast)))
    if brightness:
        grey_values = round(brightness * 255)
        steps.append(iaa.Add((-grey_values, grey_values)))
    return iaa.Sequential(steps)


class SeededAugmenter:
    """An augmenter of imgaug whose every batch depends on its seed alone, in any thread.

    An augmenter holds random state, and its parameters may hold numbers drawn for earlier batches.
    So each thread has a copy of its own. Its parts share one generator, new for every batch, and
    draw what a batch needs and no more: imgaug lets a parameter draw 10,000 numbers ahead, switched
    by a flag that all threads share. Whatever else an augmenter may remember from batch to batch is
    not reset; of imgaug's only `FrequencyNoise` remembers anything that matters, and is cured of
    it. What draws from NumPy's global state, as ``imgaug.augmenters.imgcorruptlike`` does, depends
    on its seed in one thread only.
    """

    def __init__(self, augmenter: iaa.Augmenter) -> None:
        """Copies the augmenter, which is left as it is."""
        self._augmenter = copy.deepcopy(augmenter)
        self._of_thread = threading.local()

    def __call__(
        self, films: np.ndarray, seed: Sequence[int], masks: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Augments a batch.

        Args:
            films: uint8 ``(n, S, S, 1)``; may be overwritten.
            seed: non-negative integers.
            masks: float32 ``(n, h, w)`` in [0, 1], of the whole film, moved as the films are; may
                be overwritten.

        Returns:
            films uint8 ``(n, S, S, 1)`` and masks float32 ``(n, h, w)`` or None.

        Raises:
            ValueError: the augmenter changed a film's size or dtype.
        """
        if not hasattr(self._of_thread, "augmenter"):
            self._of_thread.draws = RNG(0)
            self._of_thread.augmenter = _own_copy(self._augmenter, self._of_thread.draws)
        augmenter = self._of_thread.augmenter
        self._of_thread.draws.generator = np.random.Generator(np.random.SFC64(seed))
        heatmaps = None
        if masks is not None:
            heatmaps = [HeatmapsOnImage(mask[..., np.newaxis], films.shape[1:]) for mask in masks]
        # What augmenter(images=films) does after copying films that are ours already.
        batch = augmenter.augment_batch_(_BatchInAugmentation(images=films, heatmaps=heatmaps))
        changed = np.asarray(batch.images)
        if changed.shape != films.shape or changed.dtype != films.dtype:
            raise ValueError(
                f"augmenter {augmenter.name} made {changed.dtype} {changed.shape} of "
                f"{films.dtype} {films.shape}; allowed is the same dtype and shape"
            )
        if masks is None:
            return changed, None
        return changed, np.stack([heatmap.arr_0to1[..., 0] for heatmap in batch.heatmaps])


def augmented_examples(
    film: np.ndarray,
    augmenter: iaa.Augmenter,
    *,
    mask: np.ndarray | None = None,
    count: int = 8,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """One film as training may see it, several times, for a contact sheet.

    Args:
        film: uint8 ``(S, S)``.
        augmenter: as in training.
        mask: float32 ``(h, w)`` in [0, 1], such as `chexnet.images.box_masks` makes.
        count: how many.
        seed: of the random changes.

    Returns:
        films uint8 ``(count, S, S)`` and masks float32 ``(count, h, w)`` or None.
    """
    films = np.repeat(film[np.newaxis, ..., np.newaxis], count, axis=0)
    masks = None if mask is None else np.repeat(mask[np.newaxis], count, axis=0)
    changed, moved = SeededAugmenter(augmenter)(films, [seed], masks)
    return changed[..., 0], moved


def _own_copy(augmenter: iaa.Augmenter, draws: RNG) -> iaa.Augmenter:
    """A copy that draws from one generator, and nothing ahead."""
    # deepcopy notes all copies here, also those in kernels and masks, which imgaug does not list.
    parts: dict[int, object] = {}
    copied = copy.deepcopy(augmenter, parts)
    for part in parts.values():
        while isinstance(part, iap.AutoPrefetcher):
            # In place, whoever holds it: it becomes the parameter for which it draws ahead.
            inner = part.other_param
            part.__class__, part.__dict__ = type(inner), vars(inner)
        if isinstance(part, iap.FrequencyNoise):
            # Its cache cuts small matrices out of earlier, larger ones, which hold other values.
            part._get_distance_matrix_cached = part._create_distance_matrix
        if isinstance(part, iaa.Augmenter):
            part.random_state = draws
    return copied
