"""Films as a network sees them: decoded, equalised and resized once, then read from one file."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.boxes import box_masks, scale_boxes
from chexnet.clahe import equalise
from chexnet.filmcache import new_films, open_films, remove_older
from chexnet.jpeg import read_jpg
from chexnet.labels import check_image_ids, some_of
from chexnet.workers import cores

__all__ = ["ImageStore", "box_masks", "prepare_film", "scale_boxes"]

# Part of every cache's name: a change of the steps below must change it.
FORMAT = 1
# Another process may tidy a cache away before it is open here; so often it is built again.
MOST_BUILT = 3


class ImageStore:
    """Films of a folder, ready for a network, in one memory-mapped file.

    Each ``<image_id>.jpg`` is decoded grey, equalised by CLAHE at its own resolution and resized to
    a square (by area; a film that is not square is stretched, and `scale_boxes` treats x and y
    apart accordingly). The result is an ``.npy`` file of uint8 ``(N, S, S)`` in ``cache``. Its name
    is made of the image ids, the size and time of change of every JPG, and the settings, so what
    has changed is built anew. It is written under another name and renamed when whole: two
    processes may build at once. A file that was cut short later is refused. Of one size and
    equalisation at most `chexnet.filmcache.CACHES_KEPT` files are kept, the latest used.

    Reading is safe from many threads. The pixels stay in the file's pages, which the system drops
    when memory is short; they are no memory of the process.

    Attributes:
        image_ids: list of str, in the order that was given.
        image_size: side S of a film in pixels.
        path: the cache file.
    """

    def __init__(
        self,
        folder: str | Path,
        image_ids: Iterable[str],
        *,
        image_size: int,
        cache: str | Path | None = None,
        clip_limit: float | None = 2.0,
        tiles: int = 8,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        """Opens the cache of these films, after building it where there is none.

        Args:
            folder: where the films lie as ``<image_id>.jpg``.
            image_ids: plain names (`chexnet.labels.check_image_ids`), each once.
            image_size: side of the square film in pixels, at least 8.
            cache: folder of the cache file, made if need be; ``cache`` beside ``folder`` if None.
            clip_limit: of CLAHE (Zuiderveld, Graphics Gems IV, 1994), as OpenCV counts it; None
                leaves the films as they are. 2.0 and 8 tiles are the original's.
            tiles: CLAHE's tiles along each side.
            workers: threads that build; as many as this process may use cores if None.
            progress: show a bar while building.

        Raises:
            FileNotFoundError: films are missing.
            ValueError: a setting or an image id is not allowed, films cannot be decoded, or the
                cache file was cut short or overwritten.
            OSError: the disk has no room for the cache, or other processes remove it each time.
        """
        workers = cores() if workers is None else workers
        whole = all(isinstance(number, Integral) for number in (image_size, tiles, workers))
        limit = clip_limit is None or clip_limit > 0
        if not (whole and image_size >= 8 and tiles >= 1 and workers >= 1 and limit):
            raise ValueError(
                f"image_size={image_size}, clip_limit={clip_limit}, tiles={tiles}, "
                f"workers={workers}: allowed are whole image_size >= 8, clip_limit > 0 or None, "
                "whole tiles >= 1, whole workers >= 1 or None"
            )
        self.folder = Path(folder)
        self.image_size = int(image_size)
        self.image_ids = [str(image_id) for image_id in image_ids]
        check_image_ids(self.image_ids, "ImageStore")
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}
        if len(self._row) < len(self.image_ids):
            twice = pd.Series(self.image_ids)[pd.Series(self.image_ids).duplicated()].unique()
            raise ValueError(f"ImageStore: more than once: {some_of(twice)}; allowed is once")
        if not self.image_ids:
            raise ValueError("ImageStore: no image ids; at least one is needed")
        # As float: 2 and 2.0 must not be two names of one cache.
        self._equalise = (None if clip_limit is None else float(clip_limit), int(tiles))
        cache = self.folder.parent / "cache" if cache is None else Path(cache)
        self._shape = (len(self), self.image_size, self.image_size)
        self.path = self._cache_path(cache)
        built = 0
        while (pixels := self._open()) is None:
            if built == MOST_BUILT:
                raise OSError(f"{self.path}: built {built} times, each time gone before its use")
            self._build(workers, progress)
            built += 1
        if built:
            remove_older(self.path)
        self._pixels = pixels

    def __len__(self) -> int:
        """Number of films."""
        return len(self.image_ids)

    def __getitem__(self, image_ids: str | Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
        """Films of some ids, in that order.

        Args:
            image_ids: ids; one alone is taken as a list of one.

        Returns:
            uint8 ``(n, S, S, 1)``, 0 to 255, a copy.

        Raises:
            KeyError: an id is not in this store.
        """
        if isinstance(image_ids, str):
            image_ids = [image_ids]
        try:
            rows = [self._row[image_id] for image_id in image_ids]
        except KeyError:
            strange = [image_id for image_id in image_ids if image_id not in self._row]
            raise KeyError(f"not in this store of {len(self)} films: {some_of(strange)}") from None
        return self._pixels[rows][..., np.newaxis]

    def __contains__(self, image_id: str) -> bool:
        """Whether a film of this id is in the store."""
        return image_id in self._row

    def _cache_path(self, cache: Path) -> Path:
        sources, missing = [], []
        for image_id in self.image_ids:
            try:
                facts = (self.folder / f"{image_id}.jpg").stat()
                sources.append((image_id, facts.st_size, facts.st_mtime_ns))
            except OSError:
                missing.append(f"{image_id}.jpg")
        if missing:
            raise FileNotFoundError(
                f"{self.folder}: {len(missing)} of {len(self.image_ids)} films are missing: "
                f"{some_of(missing)}"
            )
        what = [FORMAT, str(self.folder.resolve()), self.image_size, self._equalise, sources]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        clip_limit, tiles = self._equalise
        clahe = "plain" if clip_limit is None else f"clahe{clip_limit:g}x{tiles}"
        return cache / f"films-{self.image_size}px-{clahe}-{digest}.npy"

    def _open(self) -> np.ndarray | None:
        pixels = open_films(self.path, self._shape)
        if pixels is not None:
            with contextlib.suppress(OSError):  # a read-only cache is a cache all the same
                os.utime(self.path)
        return pixels

    def _build(self, workers: int, progress: bool) -> None:
        with new_films(self.path, self._shape) as pixels:
            self._fill(pixels, workers, progress)
            if self._cache_path(self.path.parent) != self.path:
                raise OSError(f"{self.folder}: films changed while they were read; open them again")

    def _fill(self, rows: np.ndarray, workers: int, progress: bool) -> None:
        # glibc gives memory of a film's size back to the system at once, which costs a fifth of all
        # the work here, until it has once been given back a larger piece.
        np.empty(2**24, np.uint8)

        def prepare(row: int) -> str | None:
            path = self.folder / f"{self.image_ids[row]}.jpg"
            try:
                film = read_jpg(path)
                prepare_film(film, self.image_size, *self._equalise, out=rows[row], overwrite=True)
            except (OSError, ValueError, cv2.error) as error:
                return f"{path.name} ({error})"
            return None

        bar = {"desc": f"films at {self.image_size} px", "unit": "film", "disable": not progress}
        with ThreadPoolExecutor(workers) as pool, _one_opencv_thread():
            outcomes = pool.map(prepare, range(len(self)))
            failed = [reason for reason in tqdm(outcomes, total=len(self), **bar) if reason]
        if failed:
            raise ValueError(
                f"{self.folder}: {len(failed)} of {len(self)} films cannot be decoded: "
                f"{some_of(failed)}"
            )


def prepare_film(
    film: np.ndarray,
    image_size: int,
    clip_limit: float | None = 2.0,
    tiles: int = 8,
    *,
    out: np.ndarray | None = None,
    overwrite: bool = False,
) -> np.ndarray:
    """CLAHE at the film's own resolution, then resizing by area.

    Args:
        film: uint8 ``(H, W)``, 0 = black = air.
        image_size: side S of the result in pixels.
        clip_limit: of CLAHE; None leaves the grey values as they are.
        tiles: CLAHE's tiles along each side.
        out: uint8 ``(S, S)``, where to write the result.
        overwrite: the film itself may be equalised: faster than in memory of its own.

    Returns:
        uint8 ``(S, S)``; ``out`` where it is given.
    """
    if clip_limit is not None:
        film = equalise(film, clip_limit, tiles, out=film if overwrite else None)
    return cv2.resize(film, (image_size, image_size), dst=out, interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def _one_opencv_thread():
    # Each film has a thread of ours; OpenCV's own would only get in their way.
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
