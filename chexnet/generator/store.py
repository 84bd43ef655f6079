"""Films as the network sees them: prepared once, then read from one file."""

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.files import check_image_id, check_number, locked, read_image, refuse, summarize

# Part of the name of every cache: a change of `prepare_film` must change it.
FORMAT = 1
# Caches of one image size and CLAHE setting that are kept (train, val, test, one more).
CACHES_KEPT = 4


class ImageStore:
    """Films of a folder, prepared for a network, in one memory-mapped file.

    Each ``<image_id>.jpg`` goes through `prepare_film`. The result is an ``.npy`` file of uint8
    ``(N, S, S)`` in ``cache``. Its name depends on the image ids, the size and modification time of
    every JPG, and the settings, so a change builds a new file. A file is renamed to its name when
    it is complete: two processes may build it at once. Of one size and CLAHE setting, the
    `CACHES_KEPT` files that were used last are kept. Threads may read at the same time.

    Attributes:
        image_ids: list of str, in the order given.
        image_size: side S of a film in pixels.
        path: the cache file.
        preparation: keyword arguments of `prepare_film` for these films.

    Example:
        >>> from chexnet.generator import ImageStore
        >>> from chexnet.splits import read_split
        >>> images, boxes = read_split("data/phantom")
        >>> store = ImageStore(
        ...     "data/phantom/jpg", images["image_id"], image_size=64, progress=False
        ... )
        >>> store[images["image_id"][:2]].shape
        (2, 64, 64, 1)
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
        """Opens the cache of these films, after building it if there is none.

        Args:
            folder: contains the films as ``<image_id>.jpg``.
            image_ids: names (`chexnet.files.check_image_id`), each once.
            image_size: side of the square film in pixels, at least 8.
            cache: folder of the cache file, created if needed; ``cache`` beside ``folder`` if None.
            clip_limit: of `apply_clahe`; None leaves CLAHE out. This and ``tiles`` are those of
                the original code.
            tiles: of `apply_clahe`.
            workers: threads that build; one for each core of this process if None.
            progress: show a progress bar while building.

        Raises:
            FileNotFoundError: films are missing.
            ValueError: a setting or an image id is invalid, films cannot be decoded, or the cache
                file was cut short or overwritten.
            OSError: the cache cannot be written, for instance because the disk is full.
        """
        workers = cv2.getNumberOfCPUs() if workers is None else workers
        check_number("image_size", image_size, integer=True, least=8)
        check_number("workers", workers, integer=True, least=1)
        _check_clahe(2.0 if clip_limit is None else clip_limit, tiles)
        self.folder = Path(folder)
        self.image_size = int(image_size)
        self.image_ids = [str(image_id) for image_id in image_ids]
        for image_id in self.image_ids:
            check_image_id(image_id, "ImageStore")
        ids = pd.Series(self.image_ids, dtype=object)
        refuse("ImageStore", ids[ids.duplicated()], "duplicate image_ids")
        if not self.image_ids:
            raise ValueError("ImageStore: no image_ids; expected at least one")
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}
        # As float: 2 and 2.0 must not be two names of one cache.
        limit = None if clip_limit is None else float(clip_limit)
        self.preparation: dict[str, Any] = {
            "image_size": self.image_size,
            "clip_limit": limit,
            "tiles": int(tiles),
        }
        self._shape = (len(self), self.image_size, self.image_size)
        self.path = self._cache_path(self.folder.parent / "cache" if cache is None else Path(cache))
        if not self.path.exists():
            self._build(workers, progress)
        self._pixels = _open_films(self.path, self._shape)
        with contextlib.suppress(OSError):  # a read-only cache can be used too
            os.utime(self.path)

    def __len__(self) -> int:
        """Number of films."""
        return len(self.image_ids)

    def __getitem__(self, image_ids: str | Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
        """A copy of films in the order of their ids, or of one film: uint8 ``(n, S, S, 1)``."""
        if isinstance(image_ids, str):
            image_ids = [image_ids]
        return self._pixels[self.rows(image_ids)][..., np.newaxis]

    def rows(self, image_ids: Iterable[str]) -> list[int]:
        """The rows of films in the cache file; a KeyError names those that are not in it."""
        image_ids = list(image_ids)
        unknown = [image_id for image_id in image_ids if image_id not in self._row]
        if unknown:
            raise KeyError(f"not in this store of {len(self)} films: {summarize(unknown)}")
        return [self._row[image_id] for image_id in image_ids]

    def fingerprint(self, image_ids: Iterable[str]) -> str:
        """SHA-256 over ids and prepared pixels of films, in hexadecimal, whatever their order.

        The first call reads all pixels of the store.
        """
        digest = hashlib.sha256()
        for image_id, row in sorted(zip(image_ids, self.rows(image_ids), strict=True)):
            digest.update(f"{image_id}\n".encode() + self._digests[row])
        return digest.hexdigest()

    @functools.cached_property
    def _digests(self) -> list[bytes]:
        with ThreadPoolExecutor(cv2.getNumberOfCPUs()) as pool:
            return list(pool.map(lambda film: hashlib.sha256(film).digest(), self._pixels))

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
                f"{self.folder}: {len(missing)} of {len(self)} films are missing: "
                f"{summarize(missing)}"
            )
        what = [FORMAT, str(self.folder.resolve()), self.preparation, sources]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        clip_limit, tiles = self.preparation["clip_limit"], self.preparation["tiles"]
        clahe = "plain" if clip_limit is None else f"clahe{clip_limit:g}x{tiles}"
        return cache / f"films-{self.image_size}px-{clahe}-{digest}.npy"

    def _build(self, workers: int, progress: bool) -> None:
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        # A name of its own, for another process may build the same cache at the same time. The lock
        # tells the file from those of killed processes.
        unfinished = folder / f".{self.path.stem}.{uuid.uuid4().hex}.part"
        lock = _lock_of(unfinished)
        needed = math.prod(self._shape)
        with contextlib.ExitStack() as stack:
            stack.callback(lock.unlink, missing_ok=True)
            stack.enter_context(locked(lock, f"{unfinished}: in use"))
            stack.callback(unfinished.unlink, missing_ok=True)
            try:
                free = shutil.disk_usage(folder).free
                if free < needed:
                    raise OSError(f"{free / 1e6:.1f} MB are free")
                with unfinished.open("xb") as file:
                    self._write_films(file, workers, progress)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(
                    f"{folder}: the cache of {needed / 1e6:.1f} MB was not written ({error}). "
                    "Choose another cache folder or a smaller image_size"
                ) from error
            if self._cache_path(folder) != self.path:
                raise OSError(f"{self.folder}: films changed while they were read; open them again")
            unfinished.replace(self.path)
            _remove_older(self.path)

    def _write_films(self, file: BinaryIO, workers: int, progress: bool) -> None:
        # Written, not mapped: a full disk is then an error and no SIGBUS.
        header = {"descr": "|u1", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(file, header)
        start, writing = file.tell(), threading.Lock()

        def write_film(row: int) -> str | None:
            try:
                film = read_image(self.folder / f"{self.image_ids[row]}.jpg")
            except (OSError, ValueError, cv2.error) as error:
                return str(error)
            film = prepare_film(film, **self.preparation)
            with writing:
                file.seek(start + row * film.size)
                file.write(film.data)
            return None

        bar = {"desc": f"films at {self.image_size} px", "unit": "film", "disable": not progress}
        with ThreadPoolExecutor(workers) as pool:
            outcomes = pool.map(write_film, range(len(self)))
            failed = [reason for reason in tqdm(outcomes, total=len(self), **bar) if reason]
        refuse(self.folder, failed, f"of {len(self)} films cannot be decoded")


def _open_films(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    # A file that is cut short while it is mapped ends this process at the next access (SIGBUS).
    try:
        pixels = np.lib.format.open_memmap(path, mode="r")
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            raise ValueError(f"expected uint8 {shape}, got {pixels.dtype} {pixels.shape}")
    except ValueError as error:
        raise ValueError(
            f"{path}: truncated or overwritten: {error}. Delete it, and it is built again"
        ) from error
    return np.asarray(pixels)


def _remove_older(path: Path) -> None:
    # Of the same size and CLAHE setting.
    alike = path.parent.glob(f"{path.name.rpartition('-')[0]}-*.npy")
    with contextlib.suppress(OSError):  # another process may remove them too, or read them
        for old in sorted(alike, key=lambda cache: cache.stat().st_mtime)[:-CACHES_KEPT]:
            if old != path:
                old.unlink()


def _remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left; what is being built now is locked."""
    for part in folder.glob(".films-*.part"):
        lock = _lock_of(part)
        with contextlib.suppress(OSError), locked(lock, f"{part}: in use"):
            part.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def _lock_of(part: Path) -> Path:
    return part.with_suffix(".lock")


def apply_clahe(film: np.ndarray, clip_limit: float = 2.0, tiles: int = 8) -> np.ndarray:
    """Applies contrast limited adaptive histogram equalization (CLAHE) with OpenCV.

    Zuiderveld, Graphics Gems IV, 1994.

    Args:
        film: uint8 ``(H, W)``, 0 = black = air.
        clip_limit: largest count of one gray value in a tile, as a multiple of the mean count;
            above 0 and below 1000.
        tiles: tiles along each side, at least 1.

    Returns:
        uint8 ``(H, W)``, a new array.

    Raises:
        ValueError: the film has another dtype or shape, or a number is out of range.

    Example:
        >>> import numpy as np
        >>> from chexnet.generator import apply_clahe
        >>> film = np.random.default_rng(0).integers(100, 120, (64, 64)).astype(np.uint8)
        >>> apply_clahe(film).std() > film.std()
        np.True_
    """
    if film.dtype != np.uint8 or film.ndim != 2:
        raise ValueError(f"film: expected uint8 (H, W), got {film.dtype} {film.shape}")
    _check_clahe(clip_limit, tiles)  # without tiles OpenCV ends the process (SIGFPE)
    # A new object each time costs nothing measurable, and one object is not safe in two threads.
    return cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(film)


def _check_clahe(clip_limit: float, tiles: int) -> None:
    check_number("clip_limit", clip_limit, above=0, below=1000)
    check_number("tiles", tiles, integer=True, least=1)


def prepare_film(
    film: np.ndarray, image_size: int, clip_limit: float | None = 2.0, tiles: int = 8
) -> np.ndarray:
    """Prepares a film for the network: CLAHE at its own resolution, then a resize by area.

    Args:
        film: uint8 ``(H, W)``, 0 = black; stretched where it is not square.
        image_size: side S of the result in pixels.
        clip_limit: of `apply_clahe`; None leaves the gray values as they are.
        tiles: of `apply_clahe`.

    Returns:
        uint8 ``(S, S)``.

    Example:
        >>> import numpy as np
        >>> from chexnet.generator import prepare_film
        >>> prepare_film(np.zeros((1024, 900), np.uint8), 160).shape
        (160, 160)
    """
    if clip_limit is not None:
        film = apply_clahe(film, clip_limit, tiles)
    return cv2.resize(film, (image_size, image_size), interpolation=cv2.INTER_AREA)
