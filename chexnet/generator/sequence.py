"""Batches for training and scoring: threaded, augmented, reproducible."""

import functools
import math
from collections.abc import Sequence

import imgaug.augmenters as iaa
import numpy as np
import pandas as pd

from chexnet.backend import keras
from chexnet.files import check_number, refuse
from chexnet.generator.augmentation import SeededAugmenter
from chexnet.generator.store import ImageStore
from chexnet.labels import boxes_by_film, boxes_of_class, masks_by_film

# Masks are made and augmented on a finer raster than the map, of about this many cells a side.
MASK_RASTER = 128
# Keeps the seeds of order and augmentation apart: NumPy pads a short seed with zeros.
_ORDER, _AUGMENTATION = 1, 2


class AugmentedImageSequence(keras.utils.PyDataset):
    """Batches of films, labels and, on request, masks of the boxes.

    Batch k of epoch e depends on ``(seed, e, k)`` alone, not on the number of threads or on earlier
    batches. Every film comes once an epoch; the last batch may be smaller. Keras advances the epoch
    when its threads have stopped; for a resumed run, set ``epoch`` first. Call
    ``fit(..., shuffle=False)``: by default Keras shuffles the batches of any PyDataset again, with
    Python's global random state.

    Attributes:
        epoch: the epoch of the next batches; can be set.
        image_ids: array of str, in the order of the table.
        labels: float32 ``(N, classes)`` of 0, 1 and NaN (missing), in the order of the table.
        boxes: for each class with boxes on its positive films, image_id to float ``(k, 4)``: x, y,
            width, height as shares of the film. Other boxes are not used.
        located: bool ``(N, classes)``, where the place of the class is known: in a box, or, of a
            class that has `boxes`, nowhere on a film without it.

    Example:
        >>> from chexnet.generator import AugmentedImageSequence, ImageStore, default_augmenter
        >>> from chexnet.splits import read_split
        >>> images, boxes = read_split("data/phantom")
        >>> images = images[images["split"] == "train"]
        >>> store = ImageStore(
        ...     "data/phantom/jpg", images["image_id"], image_size=64, progress=False
        ... )
        >>> train = AugmentedImageSequence(
        ...     store, images, class_names=("Pneumonia",), batch_size=4, shuffle=True,
        ...     augmenter=default_augmenter(64), seed=0,
        ... )
        >>> films, labels = train[0]
        >>> films.shape, films.dtype, labels.shape
        ((4, 64, 64, 1), dtype('uint8'), (4, 1))
    """

    def __init__(
        self,
        store: ImageStore,
        images: pd.DataFrame,
        *,
        class_names: Sequence[str],
        batch_size: int,
        augmenter: iaa.Augmenter | None = None,
        shuffle: bool,
        seed: int = 0,
        workers: int = 1,
        boxes: pd.DataFrame | None = None,
        map_size: tuple[int, int] | None = None,
    ) -> None:
        """Checks the table and prepares the batches; reads no pixels.

        Args:
            store: contains the films of ``images``.
            images: one row a film: ``image_id``, a column of 0, 1 or missing for each class, and,
                with ``boxes``, ``rows`` and ``columns`` of the original film.
            class_names: columns of ``images``, in the order of the scores of the network.
            batch_size: films a batch, at least 1.
            augmenter: an imgaug augmenter, such as `default_augmenter`; None leaves the films as
                they are. For training only.
            shuffle: a new order each epoch. False for validation and test: the order of the table.
            seed: of order and augmentation, 0 or above.
            workers: threads that prepare batches.
            boxes: ``image_id, x, y, width, height`` in original pixels; with several classes
                ``class_name``, without which all boxes are of the first class.
            map_size: ``(h, w)`` of the masks; together with ``boxes``.

        Raises:
            ValueError: an argument or a label is invalid, or a film is listed twice.
            KeyError: a film is not in the store.
        """
        super().__init__(workers=workers, use_multiprocessing=False)
        check_number("batch_size", batch_size, integer=True, least=1)
        check_number("workers", workers, integer=True, least=1)
        check_number("seed", seed, integer=True, least=0)
        if (boxes is None) != (map_size is None):
            raise ValueError("expected boxes and map_size together, or neither")
        if map_size is not None and min(map_size) < 1:
            raise ValueError(f"map_size={map_size}: expected at least 1 cell a side")
        _check_table(images, class_names, store)
        self.store = store
        self.class_names = tuple(class_names)
        self.image_ids = images["image_id"].to_numpy(dtype=object)
        self.labels = images[list(class_names)].to_numpy(dtype=np.float32)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.augmenter = None if augmenter is None else SeededAugmenter(augmenter)
        self.map_size = None if map_size is None else (int(map_size[0]), int(map_size[1]))
        self.boxes: dict[str, dict[str, np.ndarray]] = {}
        self.located = np.zeros(self.labels.shape, bool)
        for index, name in enumerate(self.class_names if boxes is not None else ()):
            its_boxes = boxes_of_class(boxes, name, self.class_names)
            positive = images.loc[images[name] == 1, "image_id"]
            found = boxes_by_film(its_boxes[its_boxes["image_id"].isin(positive)], images)
            if found:
                self.boxes[name] = found
                absent, boxed = self.labels[:, index] == 0, np.isin(self.image_ids, list(found))
                self.located[:, index] = absent | boxed
        self.epoch = 0

    @property
    def epoch(self) -> int:
        """The epoch whose batches come next; set it between epochs only."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        check_number("epoch", epoch, integer=True, least=0)
        self._epoch = int(epoch)
        self._begun = False

    def __len__(self) -> int:
        """Batches an epoch; the last may be smaller."""
        return math.ceil(len(self.image_ids) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | dict[str, np.ndarray]]:
        """Batch ``index`` of the current epoch, as `batch` returns it."""
        return self.batch(self._epoch, index)

    def batch(
        self, epoch: int, index: int
    ) -> tuple[np.ndarray, np.ndarray | dict[str, np.ndarray]]:
        """A batch of any epoch: films uint8 ``(n, S, S, 1)`` and labels float32 ``(n, classes)``.

        If there are `boxes`, labels are ``{"predictions": labels, "location": masks}`` with masks
        float32 ``(n, h, w, classes)``: the share of each cell that lies in a box of the class,
        after augmentation. They are 0 for a film without the class, NaN where not `located`.
        """
        rows = self.rows(epoch, index)
        image_ids = self.image_ids[rows]
        films, labels, masks = self.store[image_ids], self.labels[rows], None
        if self.map_size is not None and self.boxes:
            # Each cell of the map is cut into equal parts; the mean of the parts is its share.
            height, width = (side * max(1, MASK_RASTER // side) for side in self.map_size)
            by_class = [masks_by_film(b, image_ids, (height, width)) for b in self.boxes.values()]
            masks = np.stack(by_class, axis=-1)
        if self.augmenter is not None:
            seed = [self.seed, epoch, index, _AUGMENTATION]
            films, masks = self.augmenter(films, seed, masks)
        if masks is None or self.map_size is None:
            return films, labels
        (height, width), (n, tall, wide, _) = self.map_size, masks.shape
        parts = masks.reshape(n, height, tall // height, width, wide // width, -1)
        location = np.full((n, height, width, len(self.class_names)), np.nan, np.float32)
        for name, shares in zip(self.boxes, np.moveaxis(parts.mean((2, 4)), -1, 0), strict=True):
            index = self.class_names.index(name)
            known = self.located[rows, index]
            location[known, ..., index] = shares[known]
        return films, {"predictions": labels, "location": location}

    def rows(self, epoch: int, index: int) -> np.ndarray:
        """Positions ``(n,)`` in ``image_ids`` and ``labels`` of the films of a batch."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index}: expected 0 to {len(self) - 1}")
        films = len(self.image_ids)
        order = _order(films, self.seed, epoch) if self.shuffle else np.arange(films)
        start = index * self.batch_size
        return order[start : start + self.batch_size]

    def on_epoch_begin(self) -> None:
        """Called by Keras; its threads may already fetch batches."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Called by Keras when its threads have stopped: advances the epoch."""
        # Keras also calls this before the first epoch, and sometimes twice after an epoch.
        if self._begun:
            self.epoch += 1


@functools.lru_cache(maxsize=4)
def _order(films: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, _ORDER]).permutation(films)


def _check_table(images: pd.DataFrame, class_names: Sequence[str], store: ImageStore) -> None:
    if isinstance(class_names, str) or not len(class_names):
        raise ValueError(f"class_names={class_names!r}; expected at least one name")
    missing = [name for name in ["image_id", *class_names] if name not in images]
    refuse("images", missing, "missing columns")
    image_ids = images["image_id"]
    rule = "one row for each film; boxes have a table of their own"
    refuse("images", image_ids[image_ids.duplicated()], "duplicate image_ids", rule)
    for name in class_names:
        bad = images[images[name].notna() & ~images[name].isin([0, 1])]
        found = [f"{label!r} of {i}" for i, label in zip(bad["image_id"], bad[name], strict=True)]
        refuse("images", found, f"invalid labels {name}", "0, 1 or missing")
    if images.empty:
        raise ValueError("images: no films")
    store.rows(image_ids)  # raises a KeyError for films that are not in the store
