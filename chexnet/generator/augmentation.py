"""Random changes of training films, and of the masks that belong to them, with imgaug.

The two steps of augmentation that take the time, as augmenters of imgaug: warp and blur.
"""

import copy
import threading
from collections.abc import Sequence

import cv2
import imgaug.augmenters as iaa
import imgaug.parameters as iap
import numpy as np
from imgaug.augmentables.batches import _BatchInAugmentation
from imgaug.augmentables.heatmaps import HeatmapsOnImage
from imgaug.random import RNG
from numba import njit

# Side in pixels from which a film is warped in strips, and how many.
_STRIPS_FROM, _STRIPS = 224, 4
_BACKWARDS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
# OpenCV blurs bytes with weights in 256ths. Below the first sigma, in pixels, a neighbour's weight
# is rounded to 0 and nothing changes; below the second that of the pixel next but one is.
_FAINTEST, _FAINT = 0.28, 0.55
# What imgaug can turn into key points and back.
_OF_POINTS = ("keypoints", "bounding_boxes", "line_strings", "polygons")


class FilmWarp(iaa.Augmenter):
    """Mirror image, rotation, shear, scale and shift of a batch in one interpolation a film.

    ``iaa.Fliplr`` and ``iaa.Affine`` do the same in two passes and with a matrix product a step
    and film; here the matrices of a batch are made at once and large films are warped in strips.
    About the centre of the film, bilinear, 0 from outside. Carries images with up to four channels,
    heat maps, and imgaug's boxes, key points, lines and polygons of such images; a box becomes the
    upright box about its corners. Shear is along x alone: with one angle for both axes, as a tuple
    for imgaug 0.4 and later means, it would be another rotation.
    """

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

    def _augment_batch_(self, batch, random_state, parents, hooks):
        strange = {column.name for column in batch.columns} - {"images", "heatmaps", *_OF_POINTS}
        if strange:
            raise NotImplementedError(f"FilmWarp carries no {', '.join(strange)}")
        # Always the same draws in the same order: a strength changes nothing else.
        mirrored = random_state.random((batch.nb_rows,)) < self.flip
        draws = random_state.uniform(-1.0, 1.0, (5, batch.nb_rows))
        inverse = self._inverse_maps(mirrored, draws)
        shifts = self.shift * draws[3:].T
        images = () if batch.images is None else batch.images
        if isinstance(images, np.ndarray):
            _warp(images, _on_grid(inverse, images.shape[1:]), shifts)
        else:
            for i, image in enumerate(images):
                _warp(image[np.newaxis], _on_grid(inverse[[i]], image.shape), shifts[[i]])
        for i, heatmap in enumerate(batch.heatmaps or []):
            if heatmap.arr_0to1.any():
                # A square film of another size turns alike; one that is stretched does not.
                stretch = np.divide(heatmap.arr_0to1.shape[:2], heatmap.shape[:2])[::-1]  # x, y
                turned = _on_grid(inverse[[i]], heatmap.shape) * stretch[:, np.newaxis] / stretch
                _warp(heatmap.arr_0to1[np.newaxis], turned, shifts[[i]])
        for name in _OF_POINTS:
            for i, figure in enumerate(getattr(batch, name) or []):
                _move_points(figure, _on_grid(inverse[[i]], figure.shape)[0], shifts[i])
        return batch

    def _inverse_maps(self, mirrored: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Of shear @ rotation @ mirror, ``(n, 2, 2)``, acting on (x, y)."""
        angle = np.radians(self.rotation) * draws[0]
        slope = np.tan(np.radians(self.shear) * draws[1])
        size = 1 + self.scale * draws[2]
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        side = np.where(mirrored, -1, 1)
        maps = [[side * cos, side * (sin + slope * cos)], [-sin, cos - slope * sin]]
        return np.array(maps).transpose(2, 0, 1)


class FilmBlur(iaa.Augmenter):
    """Gaussian blur of every second film of a batch, in place; all else stays as it is.

    What ``iaa.GaussianBlur`` makes of a film, but for rounding, without the work that changes no
    byte: the smallest kernel that holds all weights, and none where there is but one.
    """

    def __init__(self, *, sigma: float) -> None:
        """Largest sigma in pixels."""
        super().__init__()
        self.sigma = sigma

    def get_parameters(self) -> list[float]:
        """The largest sigma."""
        return [self.sigma]

    def _augment_batch_(self, batch, random_state, parents, hooks):
        # Half of the draws are below zero: those films stay as they are.
        sigmas = random_state.uniform(-self.sigma, self.sigma, (batch.nb_rows,)).tolist()
        for image, sigma in zip(() if batch.images is None else batch.images, sigmas, strict=False):
            whole = image.dtype == np.uint8
            if sigma >= _FAINTEST or (sigma > 0 and not whole):
                grey = image[..., 0] if image.shape[2] == 1 else image
                size = (3, 3) if whole and sigma < _FAINT else (0, 0)
                cv2.GaussianBlur(grey, size, sigma, dst=grey)
        return batch


class _Room(threading.local):
    """Memory that a thread's films use in turn: fresh memory costs half as much as the warp."""

    def __init__(self) -> None:
        self.held: dict[str, np.ndarray] = {}

    def __call__(self, name: str, needed: int) -> np.ndarray:
        """Uint32, as many or more, their content left over from earlier."""
        if name not in self.held or self.held[name].size < needed:
            self.held[name] = np.empty(needed * 5 // 4, np.uint32)
        return self.held[name]


_room = _Room()


def _on_grid(inverse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Maps whose strips of a film lie whole pixels apart in the source, as `_in_strips` needs.

    Nothing moves by more than a pixel at the film's upper and lower edge. Small films stay as they
    are: a pixel is an angle there, and they take little time.
    """
    if min(shape[:2]) < _STRIPS_FROM:
        return inverse
    gridded = inverse.copy()
    strip = shape[0] // _STRIPS
    gridded[..., 1] = np.rint(inverse[..., 1] * strip) / strip
    return gridded


def _move_points(figure, inverse: np.ndarray, shift: np.ndarray) -> None:
    """As `_warp` moves what lies under them; in imgaug's coordinates a pixel's middle is at 0.5."""
    size = np.array(figure.shape[1::-1])  # x, y
    points = figure.to_keypoints_on_image()
    moved = (points.to_xy_array() - size / 2) @ np.linalg.inv(inverse).T
    points.fill_from_xy_array_(moved + size / 2 + shift * size)
    figure.invert_to_keypoints_on_image_(points)


def _warp(films: np.ndarray, inverse: np.ndarray, shifts: np.ndarray) -> None:
    """Moves films in place.

    Args:
        films: ``(n, H, W, channels)``.
        inverse: ``(n, 2, 2)``, takes (x, y) about the centre to where it came from.
        shifts: ``(n, 2)``, shares of width and height.
    """
    height, width, channels = films.shape[1:]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    sources = inverse @ (centre + shifts * (width, height))[..., np.newaxis]
    offsets = centre - sources[..., 0]
    if channels == 1:  # OpenCV knows grey films without a channel axis
        films = films[..., 0]
    strips = films.dtype == np.uint8 and films.ndim == 3 and height % _STRIPS == 0
    in_strips = np.abs(inverse).max(axis=(1, 2)) < 2
    if not strips or min(height, width) < _STRIPS_FROM:
        in_strips[:] = False
    if in_strips.all():
        _in_strips(films, inverse, offsets)
        return
    if in_strips.any():
        some = films[in_strips]
        _in_strips(some, inverse[in_strips], offsets[in_strips])
        films[in_strips] = some
    matrices = _matrices(inverse, offsets)
    for i in np.flatnonzero(~in_strips):
        films[i] = cv2.warpAffine(films[i], matrices[i], (width, height), flags=_BACKWARDS)


def _matrices(inverse: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """As OpenCV wants them, ``(n, 2, 3)``."""
    return np.concatenate([inverse, offsets[..., np.newaxis]], axis=-1)


def _in_strips(films: np.ndarray, inverse: np.ndarray, offsets: np.ndarray) -> None:
    """The four strips of a grey film as four channels of one warp, in less than half the time.

    OpenCV works out once for all channels where a pixel comes from. That a strip's source is the
    next one's moved by whole pixels is `_on_grid`'s doing. What lies between the calls holds
    Python's lock, and every call gives it away and waits for it again: hence two calls a film.
    """
    rows, width = films.shape[1:]
    height = rows // _STRIPS
    reach = inverse * (width, height)
    step = np.rint(reach[..., 1]).astype(int)  # from one strip's source to the next one's, x and y
    low, high = np.minimum(reach, 0).sum(axis=2), np.maximum(reach, 0).sum(axis=2)
    first = np.floor(offsets + low).astype(int)  # corner of the first strip's source
    span = np.ceil(high - low).astype(int) + 3  # of one strip's source
    matrices = _matrices(inverse, offsets - first)
    source = _room("source", span.prod(axis=1).max())
    target = _room("target", width * height)
    warped = _as_channels(target, width, height)
    for i, (across, down) in enumerate(span.tolist()):
        _unpack_and_pack(films, i, target, first, step, span, source)
        joined = _as_channels(source, across, down)
        cv2.warpAffine(joined, matrices[i], (width, height), dst=warped, flags=_BACKWARDS)
    _unpack_and_pack(films, len(films), target, first, step, span, source)


def _as_channels(packed: np.ndarray, width: int, height: int) -> np.ndarray:
    """The four bytes of each pixel as channels, ``(height, width, 4)``."""
    return packed[: width * height].view(np.uint8).reshape(height, width, _STRIPS)


@njit(nogil=True, cache=True)
def _unpack_and_pack(
    films: np.ndarray,
    film: int,
    target: np.ndarray,
    first: np.ndarray,
    step: np.ndarray,
    span: np.ndarray,
    source: np.ndarray,
) -> None:
    """Ends the film before this one, and begins this one, where there are such.

    Args:
        films: uint8 ``(n, H, W)``.
        film: the one whose strips' sources are to be put into ``source``, 0 to n.
        target: uint32 ``(H / 4 * W,)``, the strips of the one before it, warped, one a byte.
        first: int ``(n, 2)``, x and y of the first strip's source.
        step: int ``(n, 2)``, from one strip's source to the next one's.
        span: int ``(n, 2)``, width and height of a source.
        source: uint32 ``(at least width * height,)``; 0 where it is outside the film.
    """
    count, rows, width = films.shape
    height = rows // _STRIPS
    if film > 0:
        for strip in range(_STRIPS):
            for y in range(height):
                line = target[y * width : (y + 1) * width]
                _take_byte(line, strip, films[film - 1, strip * height + y])
    if film < count:
        across, down = span[film]
        for y in range(down):
            line = source[y * across : (y + 1) * across]
            line[:] = 0
            for strip in range(_STRIPS):
                left = first[film, 0] + strip * step[film, 0]
                row = first[film, 1] + strip * step[film, 1] + y
                start, stop = max(-left, 0), min(width - left, across)
                if 0 <= row < rows and start < stop:
                    pixels = films[film, row, left + start : left + stop]
                    _put_byte(pixels, strip, line[start:stop])


# Functions of their own: the compiler checks once a line that nothing overlaps.
@njit(nogil=True, cache=True)
def _take_byte(line: np.ndarray, byte: int, pixels: np.ndarray) -> None:
    for x in range(line.size):
        pixels[x] = np.uint8(line[x] >> np.uint32(8 * byte))


@njit(nogil=True, cache=True)
def _put_byte(pixels: np.ndarray, byte: int, line: np.ndarray) -> None:
    for x in range(line.size):
        line[x] |= np.uint32(pixels[x]) << np.uint32(8 * byte)


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
        mask: float32 ``(h, w)`` in [0, 1], such as `chexnet.labels.box_masks` makes.
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
