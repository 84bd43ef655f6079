"""The two steps of augmentation that take the time, as augmenters of imgaug: warp and blur."""

import threading

import cv2
import imgaug.augmenters as iaa
import numpy as np
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
        """Strengths as in `chexnet.augmentation.default_augmenter`."""
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
