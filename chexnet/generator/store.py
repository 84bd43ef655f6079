"""Films as a network sees them: decoded, equalised and resized once, then read from one file.

CLAHE, contrast limited adaptive histogram equalisation: what OpenCV gives, in less time.

OpenCV's own is what a film's first epoch takes longest for (`benchmarks/bench_generator.py`). Bytes
are the same where OpenCV rounds every product, as on x86-64; elsewhere a few differ by 1. The loops
are written out because Numba compiles them faster than the same in NumPy's words.

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
from numba import njit
from tqdm.auto import tqdm

from chexnet.files import check_image_id, read_image, summarize


def equalise(
    film: np.ndarray,
    clip_limit: float = 2.0,
    tiles: int = 8,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """What ``cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(film)`` gives.

    The film is cut into tiles, each with a table of its own from its clipped histogram; a pixel is
    looked up in the four tables about it, bilinearly (Zuiderveld, Graphics Gems IV, 1994).

    Args:
        film: uint8 ``(H, W)``, 0 = black = air.
        clip_limit: most pixels of one grey value in a tile, in means of its histogram; above 0.
        tiles: along each side, at least 1.
        out: uint8 ``(H, W)``, where to write the result; may be the film itself.

    Returns:
        uint8 ``(H, W)``; ``out`` where it is given.

    Raises:
        ValueError: the film or ``out`` is of another kind, or a setting is not allowed.
    """
    if film.dtype != np.uint8 or film.ndim != 2 or not film.size:
        raise ValueError(f"film: {film.dtype} {film.shape}; allowed is uint8 (H, W)")
    if out is not None and (out.dtype != np.uint8 or out.shape != film.shape):
        raise ValueError(f"out: {out.dtype} {out.shape}; allowed is uint8 {film.shape}")
    if not (clip_limit > 0 and isinstance(tiles, Integral) and tiles >= 1):
        raise ValueError(
            f"clip_limit={clip_limit}, tiles={tiles}: allowed are clip_limit > 0, whole tiles >= 1"
        )
    whole = film
    if film.shape[0] % tiles or film.shape[1] % tiles:
        # A side that needs no rows or columns gets a whole set too, as in OpenCV.
        down, right = (tiles - side % tiles for side in film.shape)
        whole = cv2.copyMakeBorder(film, 0, down, 0, right, cv2.BORDER_REFLECT_101)
    height, width = whole.shape[0] // tiles, whole.shape[1] // tiles
    most = max(int(min(clip_limit * height * width / 256, height * width)), 1)
    out = np.empty_like(film) if out is None else out
    tables = _tables(whole, height, width, most)
    _look_up(film, tables, *_middles(film.shape[0], height), *_middles(film.shape[1], width), out)
    return out


def _middles(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where along a side the middles of tiles lie, and of every pixel how far past the last it is.

    Args:
        length: of the side in pixels.
        size: of a tile.

    Returns:
        int64 ``(intervals + 1,)``, the first pixel of every interval between two middles, the ends
        of the side included; float32 ``(length,)``, a share of ``size``.
    """
    # Everything from here on is float32, and in OpenCV's order: the same rounding, the same bytes.
    place = np.arange(length, dtype=np.float32) * (np.float32(1) / np.float32(size))
    place -= np.float32(0.5)
    last = np.floor(place)
    starts = np.searchsorted(last, np.arange(-1, int(last[-1]) + 2))
    return starts, place - last


@njit(nogil=True, cache=True)
def _tables(film: np.ndarray, height: int, width: int, most: int) -> np.ndarray:
    """Of every tile, the new grey value of each old one: float32 ``(down, across, 256)``."""
    down, across = film.shape[0] // height, film.shape[1] // width
    tables = np.empty((down, across, 256), np.float32)
    scale = np.float32(255) / np.float32(height * width)
    # Neighbours are often equal, and adding to a number twice means waiting for the first sum.
    apart = np.empty((4, 256), np.int32)
    counts = np.empty(256, np.int32)
    for row in range(down):
        for column in range(across):
            apart[:] = 0
            for y in range(row * height, (row + 1) * height):
                _count(film[y, column * width : (column + 1) * width], apart)
            for grey in range(256):
                counts[grey] = apart[0, grey] + apart[1, grey] + apart[2, grey] + apart[3, grey]
            _clip(counts, most)
            below = 0
            for grey in range(256):
                below += counts[grey]
                tables[row, column, grey] = np.rint(np.float32(below) * scale)
    return tables


@njit(nogil=True, cache=True)
def _count(line: np.ndarray, apart: np.ndarray) -> None:
    for x in range(line.size):
        apart[x % 4, line[x]] += 1


@njit(nogil=True, cache=True)
def _clip(counts: np.ndarray, most: int) -> None:
    """Takes what is above the limit and spreads it: a share for all, the rest at equal steps."""
    spare = 0
    for grey in range(256):
        if counts[grey] > most:
            spare += counts[grey] - most
            counts[grey] = most
    for grey in range(256):
        counts[grey] += spare // 256
    rest = spare % 256
    for i in range(rest):
        counts[i * (256 // rest)] += 1


@njit(nogil=True, cache=True)
def _look_up(
    film: np.ndarray,
    tables: np.ndarray,
    row_starts: np.ndarray,
    lower: np.ndarray,
    column_starts: np.ndarray,
    right: np.ndarray,
    out: np.ndarray,
) -> None:
    """Every pixel between the tables of the four tiles whose middles lie about it."""
    down, across = tables.shape[0] - 1, tables.shape[1] - 1
    left = np.float32(1) - right
    line = np.empty_like(film[0])  # else no pixel could be read before the last is written
    for i in range(row_starts.size - 1):
        above, below = tables[max(i - 1, 0)], tables[min(i, down)]
        for y in range(row_starts[i], row_starts[i + 1]):
            for x in range(line.size):
                line[x] = film[y, x]
            for j in range(column_starts.size - 1):
                here = slice(column_starts[j], column_starts[j + 1])
                before, after = max(j - 1, 0), min(j, across)
                _blend(
                    line[here], above[before], above[after], below[before], below[after],
                    left[here], right[here], np.float32(1) - lower[y], lower[y], out[y, here],
                )  # fmt: skip


@njit(nogil=True, cache=True)
def _blend(line, above_left, above_right, below_left, below_right, left, right, upper, lower, out):
    # A function of its own: the compiler checks once a line that nothing overlaps.
    for x in range(line.size):
        grey = line[x]
        above = above_left[grey] * left[x] + above_right[grey] * right[x]
        below = below_left[grey] * left[x] + below_right[grey] * right[x]
        out[x] = np.uint8(np.int32(np.rint(above * upper + below * lower)))


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
                film = read_image(path)
                prepare_film(film, self.image_size, *self._equalise, out=rows[row], overwrite=True)
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
