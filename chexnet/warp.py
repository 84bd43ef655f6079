"""The two steps of augmentation that take the time, as augmenters of imgaug: warp and blur."""

import math
import threading

import cv2
import imgaug.augmenters as iaa
import numpy as np

# Side in pixels from which a film is warped in four tiles.
_TILED_FROM = 224
_BACKWARDS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
# OpenCV blurs bytes with weights in 256ths. Below the first sigma, in pixels, a neighbour's weight
# is rounded to 0 and nothing changes; below the second that of the pixel next but one is.
_FAINTEST, _FAINT = 0.28, 0.55


class FilmWarp(iaa.Augmenter):
    """Mirror image, rotation, shear, scale and shift of a batch in one interpolation a film.

    ``iaa.Fliplr`` and ``iaa.Affine`` do the same in two passes and with a matrix product a step
    and film; here the matrices of a batch are made at once and large films are warped in tiles.
    Carries images with up to four channels and heat maps; about the centre of the film, bilinear,
    0 from outside. Shear is along x alone: with one angle for both axes, as a tuple for imgaug 0.4
    and later means, it would be another rotation.
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
        strange = {column.name for column in batch.columns} - {"images", "heatmaps"}
        if strange:
            raise NotImplementedError(f"FilmWarp carries images and heatmaps, not {strange}")
        # Always the same draws in the same order: a strength changes nothing else.
        mirrored = random_state.random((batch.nb_rows,)) < self.flip
        draws = random_state.uniform(-1.0, 1.0, (5, batch.nb_rows))
        inverse = np.linalg.inv(self._linear_maps(mirrored, draws))
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
        return batch

    def _linear_maps(self, mirrored: np.ndarray, draws: np.ndarray) -> np.ndarray:
        angle = np.radians(self.rotation) * draws[0]
        slope = np.tan(np.radians(self.shear) * draws[1])
        size = 1 + self.scale * draws[2]
        cos, sin = size * np.cos(angle), size * np.sin(angle)
        maps = np.array([[cos - slope * sin, -sin - slope * cos], [sin, cos]])  # shear @ rotation
        maps[:, 0] *= np.where(mirrored, -1, 1)  # first the mirror: column x changes its sign
        return maps.transpose(2, 0, 1)  # (n, 2, 2), acting on (x, y)


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

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """Uint8 of a shape, its content left over from earlier."""
        needed = math.prod(shape)
        if name not in self.held or self.held[name].size < needed:
            # At an odd address: to an even one cv2.merge writes past the processor's cache.
            self.held[name] = np.empty(needed * 5 // 4 + 1, np.uint8)[1:]
        return self.held[name][:needed].reshape(shape)


_room = _Room()


def _on_grid(inverse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Maps whose two halves of a film lie whole pixels apart in the source, as `_in_tiles` needs.

    Nothing moves by more than half a pixel at the film's edge. Small films stay as they are: half
    a pixel is an angle there, and they take little time.
    """
    if min(shape[:2]) < _TILED_FROM:
        return inverse
    half = (shape[1] // 2, shape[0] // 2)
    return np.rint(inverse * half) / half


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
    halves = films.dtype == np.uint8 and films.ndim == 3 and height % 2 == width % 2 == 0
    tiled = np.abs(inverse).max(axis=(1, 2)) < 2
    if not halves or min(height, width) < _TILED_FROM:
        tiled[:] = False
    matrices = _matrices(inverse, offsets)
    for i in np.flatnonzero(~tiled):
        cv2.warpAffine(
            films[i].copy(), matrices[i], (width, height), dst=films[i], flags=_BACKWARDS
        )
    if tiled.all():
        _in_tiles(films, inverse, offsets)
    elif tiled.any():
        some = films[tiled]
        _in_tiles(some, inverse[tiled], offsets[tiled])
        films[tiled] = some


def _matrices(inverse: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """As OpenCV wants them, ``(n, 2, 3)``."""
    return np.concatenate([inverse, offsets[..., np.newaxis]], axis=-1)


def _in_tiles(films: np.ndarray, inverse: np.ndarray, offsets: np.ndarray) -> None:
    """The four quarters of a grey film as four channels of one warp, in less than half the time.

    OpenCV works out once for all channels where a pixel comes from. That a quarter's source is
    another's moved by whole pixels is `_on_grid`'s doing. All that can be reckoned is reckoned for
    the whole batch at once: between OpenCV's calls a thread holds Python's lock, and others wait.
    """
    rows, columns = films.shape[1:]
    height, width = rows // 2, columns // 2
    # To the source of each quarter, (n, x or y, quarter), in whole pixels.
    steps = np.rint(inverse * (width, height)).astype(int) @ [[0, 1, 0, 1], [0, 0, 1, 1]]
    least, most = steps.min(axis=2), steps.max(axis=2)
    # What one quarter's source spans, x and y.
    span = most - least + 3
    span[:, 0] += -span[:, 0] % 16  # cv2.merge is a tenth as fast with a rest
    # One quarter's source reaches as far as the quarters' first corners lie apart; all of it:
    first = np.floor(offsets).astype(int)
    begin, end = first + 2 * least, first + most + least + span
    matrices = _matrices(inverse, offsets - (first + least))
    begins = (steps - least[:, :, np.newaxis]).transpose(0, 2, 1).tolist()
    source = _room("source", *(end - begin).max(axis=0)[::-1])
    quarters = _room("quarters", *span.max(axis=0)[::-1], 4)
    warped = _room("warped", len(films), height, width, 4)
    planes = _room("planes", 4, len(films), height, width)
    for film, (left, top), (right, bottom), (across, down), corners, matrix, target in zip(
        films, begin.tolist(), end.tolist(), span.tolist(), begins, matrices, warped, strict=True
    ):
        inner = film[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        if not inner.size:
            target[:] = 0
            continue
        cv2.copyMakeBorder(
            inner, max(-top, 0), max(bottom - rows, 0), max(-left, 0), max(right - columns, 0),
            cv2.BORDER_CONSTANT, dst=source[: bottom - top, : right - left], value=0,
        )  # fmt: skip
        views = [source[y : y + down, x : x + across] for x, y in corners]
        merged = quarters[:down, :across]
        cv2.merge(views, dst=merged)
        cv2.warpAffine(merged, matrix, (width, height), dst=target, flags=_BACKWARDS)
    # Straight into the films it takes three times as long.
    cv2.split(warped.reshape(-1, width, 4), mv=list(planes.reshape(4, -1, width)))
    for plane, (y, x) in zip(planes, np.ndindex(2, 2), strict=True):
        films[:, y * height :, x * width :][:, :height, :width] = plane
