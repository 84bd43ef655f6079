"""Films as a network sees them: decoded, equalised and resized once, then read from one file.

A file of films that are ready for a network: there whole or not at all, and read by mapping.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.files import check_image_id, read_image, summarize


def apply_clahe(film: np.ndarray, clip_limit: float = 2.0, tiles: int = 8) -> np.ndarray:
    """Applies contrast limited adaptive histogram equalization (CLAHE) with OpenCV.

    Zuiderveld, Graphics Gems IV, 1994. Safe to call from several threads.

    Args:
        film: uint8 ``(H, W)``, 0 = black = air.
        clip_limit: contrast limit as OpenCV counts it: the largest count of one grey value in a
            tile, as a multiple of the mean count.
        tiles: tiles along each side.

    Returns:
        uint8 ``(H, W)``, a new array.

    Raises:
        ValueError: the film has another dtype or shape.

    Example:
        >>> from chexnet.generator import apply_clahe
        >>> film = np.arange(100, 164, dtype=np.uint8).reshape(8, 8)
        >>> enhanced = apply_clahe(film, tiles=2)
        >>> int(np.ptp(enhanced)) > int(np.ptp(film))
        True
    """
    if film.dtype != np.uint8 or film.ndim != 2:
        raise ValueError(f"film: expected uint8 (H, W), got {film.dtype} {film.shape}")
    # A new object each time costs nothing measurable, and one object is not safe in two threads.
    return cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(film)


# Caches of one image size and equalisation that may lie side by side (train, val, test, one more).
CACHES_KEPT = 4
# Unfinished files older than this were left behind by a process that was killed.
LEFT_BEHIND_SECONDS = 24 * 3600


def open_films(path: Path, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The films of a cache, or None where there is no such file.

    Args:
        path: of an ``.npy`` file that `new_films` made.
        shape: ``(N, S, S)``, what it must hold.

    Returns:
        uint8 ``(N, S, S)``, read-only pages of the file. Who cuts the file short while it is open
        ends this process at its next look (SIGBUS).

    Raises:
        ValueError: the file is not as long as these films are, or begins with something else.
    """
    header = _header(shape)
    needed = len(header) + math.prod(shape)
    try:
        size = path.stat().st_size
        if size == needed:
            with path.open("rb") as file:
                found = file.read(len(header))
            if found == header:
                return np.asarray(_mapped(path, "r", shape))
    except FileNotFoundError:
        return None
    # No process of ours leaves such a file: the disk or somebody else did.
    raise ValueError(
        f"{path}: truncated or overwritten, {size} bytes; allowed are the {needed} of a header and "
        f"{shape[0]} films. Delete it, and it is built anew"
    )


@contextlib.contextmanager
def new_films(path: Path, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Room for the films of a cache, which stands under its name once the block has ended well.

    Two processes may make the same file at once: each fills a file of its own, and both are right.

    Args:
        path: the file; its folder is made if need be.
        shape: ``(N, S, S)``.

    Yields:
        uint8 ``(N, S, S)``, to be filled.

    Raises:
        OSError: the disk has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path.parent)
    unfinished = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.part")
    header = _header(shape)
    try:
        with unfinished.open("xb") as file:
            file.write(header)
            file.flush()
            _reserve(file.fileno(), path.parent, len(header) + math.prod(shape))
            pixels = _mapped(unfinished, "r+", shape)
            yield np.asarray(pixels)
            pixels.flush()
            del pixels  # Windows does not rename a file that is mapped
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_older(path: Path) -> None:
    """Removes all but the `CACHES_KEPT` latest used caches of this one's kind.

    The kind is what stands in the name before the last hyphen.
    """
    kind = path.name.rsplit("-", 1)[0]
    for old in sorted(path.parent.glob(f"{kind}-*.npy"), key=_changed, reverse=True)[CACHES_KEPT:]:
        if old != path:
            _remove(old)


def _header(shape: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


def _mapped(path: Path, mode: str, shape: tuple[int, int, int]) -> np.memmap:
    return np.memmap(path, np.uint8, mode, offset=len(_header(shape)), shape=shape)


def _reserve(file: int, folder: Path, needed: int) -> None:
    """Takes the disk's room before it is mapped: then a full disk would kill the process."""
    free = shutil.disk_usage(folder).free
    try:
        if needed > free:
            raise OSError("too little room")
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, needed)
        else:
            os.truncate(file, needed)
    except OSError as error:
        others = len(_unfinished(folder)) - 1
        raise OSError(
            f"{folder}: {needed / 1e6:.1f} MB are needed, and {free / 1e6:.1f} MB were free "
            f"({error}). Choose another cache folder or a smaller image_size; unfinished caches "
            f"(.films-*.part) of other processes there: {others}"
        ) from error


def _unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(".films-*.part"))


def _remove_left_behind(folder: Path) -> None:
    since = time.time() - LEFT_BEHIND_SECONDS
    for part in _unfinished(folder):
        if _changed(part) < since:
            _remove(part)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # on Windows another process may hold it open
        path.unlink()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process tidied it away
        return 0.0


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
    equalisation at most `chexnet.generator.store.CACHES_KEPT` files are kept, the latest used.

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
            image_ids: names (`chexnet.files.check_image_id`), each once.
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
        workers = cv2.getNumberOfCPUs() if workers is None else workers
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
        for image_id in self.image_ids:
            check_image_id(image_id, "ImageStore")
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}
        if len(self._row) < len(self.image_ids):
            twice = pd.Series(self.image_ids)[pd.Series(self.image_ids).duplicated()].unique()
            raise ValueError(f"ImageStore: more than once: {summarize(twice)}; allowed is once")
        if not self.image_ids:
            raise ValueError("ImageStore: no image ids; at least one is needed")
        # As float: 2 and 2.0 must not be two names of one cache.
        self._clahe = (None if clip_limit is None else float(clip_limit), int(tiles))
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
            raise KeyError(
                f"not in this store of {len(self)} films: {summarize(strange)}"
            ) from None
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
                f"{summarize(missing)}"
            )
        what = [FORMAT, str(self.folder.resolve()), self.image_size, self._clahe, sources]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        clip_limit, tiles = self._clahe
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
        def prepare(row: int) -> str | None:
            path = self.folder / f"{self.image_ids[row]}.jpg"
            try:
                rows[row] = prepare_film(read_image(path), self.image_size, *self._clahe)
            except (OSError, ValueError, cv2.error) as error:
                return str(error)
            return None

        bar = {"desc": f"films at {self.image_size} px", "unit": "film", "disable": not progress}
        with ThreadPoolExecutor(workers) as pool, _one_opencv_thread():
            outcomes = pool.map(prepare, range(len(self)))
            failed = [reason for reason in tqdm(outcomes, total=len(self), **bar) if reason]
        if failed:
            raise ValueError(
                f"{self.folder}: {len(failed)} of {len(self)} films cannot be decoded: "
                f"{summarize(failed)}"
            )


def prepare_film(
    film: np.ndarray, image_size: int, clip_limit: float | None = 2.0, tiles: int = 8
) -> np.ndarray:
    """Prepares a film for the network: CLAHE at its own resolution, then a resize by area.

    Args:
        film: uint8 ``(H, W)``, 0 = black = air. A film that is not square is stretched.
        image_size: side S of the result in pixels.
        clip_limit: of `apply_clahe`; None leaves CLAHE out.
        tiles: of `apply_clahe`.

    Returns:
        uint8 ``(S, S)``.

    Raises:
        ValueError: the film has another dtype or shape.

    Example:
        >>> from chexnet.generator import prepare_film
        >>> prepare_film(np.zeros((64, 80), np.uint8), 32).shape
        (32, 32)
    """
    if clip_limit is not None:
        film = apply_clahe(film, clip_limit, tiles)
    return cv2.resize(film, (image_size, image_size), interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def _one_opencv_thread():
    # Each film has a thread of ours; OpenCV's own would only get in their way.
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
