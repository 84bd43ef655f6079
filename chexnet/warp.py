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
        for i, image in enumerate(() if batch.images is None else batch.images):
            _warp(image, _on_grid(inverse[i], image.shape), shifts[i])
        for i, heatmap in enumerate(batch.heatmaps or []):
            if heatmap.arr_0to1.any():
                # A square film of another size turns alike; one that is stretched does not.
                stretch = np.divide(heatmap.arr_0to1.shape[:2], heatmap.shape[:2])[::-1]  # x, y
                turned = _on_grid(inverse[i], heatmap.shape) * stretch[:, np.newaxis] / stretch
                _warp(heatmap.arr_0to1, turned, shifts[i])
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
    """A map whose two halves of a film lie whole pixels apart in the source, as `_in_tiles` needs.

    Nothing moves by more than half a pixel at the film's edge. Small films stay as they are: half
    a pixel is an angle there, and they take little time.
    """
    if min(shape[:2]) < _TILED_FROM:
        return inverse
    half = (shape[1] // 2, shape[0] // 2)
    return np.rint(inverse * half) / half


def _warp(image: np.ndarray, inverse: np.ndarray, shift: np.ndarray) -> None:
    """Moves an image in place; ``inverse`` takes (x, y) about the centre to where it came from."""
    height, width, channels = image.shape
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = centre - inverse @ (centre + shift * (width, height))
    if channels == 1:  # OpenCV knows grey films without a channel axis
        image = image[..., 0]
    halves = image.dtype == np.uint8 and image.ndim == 2 and height % 2 == width % 2 == 0
    if halves and min(height, width) >= _TILED_FROM and np.abs(inverse).max() < 2:
        _in_tiles(image, inverse, offset)
    else:
        matrix = np.column_stack([inverse, offset])
        cv2.warpAffine(image.copy(), matrix, (width, height), dst=image, flags=_BACKWARDS)


def _in_tiles(film: np.ndarray, inverse: np.ndarray, offset: np.ndarray) -> None:
    """The four quarters of a grey film as four channels of one warp, in less than half the time.

    OpenCV works out once for all channels where a pixel comes from. That a quarter's source is
    another's moved by whole pixels is `_on_grid`'s doing.
    """
    height, width = film.shape[0] // 2, film.shape[1] // 2
    # Plain numbers: on arrays of two the same lines take as long as the warp.
    (ax, bx), (ay, by) = np.rint(inverse * (width, height)).astype(int).tolist()
    steps_x, steps_y = (0, ax, bx, ax + bx), (0, ay, by, ay + by)  # to the source of each quarter
    least_x, least_y = min(steps_x), min(steps_y)
    across, down = max(steps_x) - least_x + 3, max(steps_y) - least_y + 3
    across += -across % 16  # cv2.merge is a tenth as fast with a rest
    # One quarter's source reaches as far as the quarters' first corners lie apart; all of it:
    x, y = (math.floor(start) for start in offset)
    left, top = x + 2 * least_x, y + 2 * least_y
    right, bottom = x + max(steps_x) + least_x + across, y + max(steps_y) + least_y + down
    inner = film[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if not inner.size:
        film[:] = 0
        return
    source = _room("source", bottom - top, right - left)
    rows, columns = film.shape
    cv2.copyMakeBorder(
        inner, max(-top, 0), max(bottom - rows, 0), max(-left, 0), max(right - columns, 0),
        cv2.BORDER_CONSTANT, dst=source, value=0,
    )  # fmt: skip
    views = []
    for step_x, step_y in zip(steps_x, steps_y, strict=True):
        begin_x, begin_y = step_x - least_x, step_y - least_y
        views.append(source[begin_y : begin_y + down, begin_x : begin_x + across])
    quarters = cv2.merge(views, dst=_room("views", down, across, 4))
    matrix = np.column_stack([inverse, offset - (x + least_x, y + least_y)])
    warped = _room("warped", height, width, 4)
    cv2.warpAffine(quarters, matrix, (width, height), dst=warped, flags=_BACKWARDS)
    planes = _room("planes", 4, height, width)
    cv2.split(warped, mv=list(planes))
    film.reshape(2, height, 2, width).transpose(0, 2, 1, 3)[:] = planes.reshape(2, 2, height, width)
