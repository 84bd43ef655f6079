"""Films as a network sees them: decoded, equalised and resized once, then read from one file."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from chexnet.boxes import box_masks, scale_boxes
from chexnet.clahe import equalise
from chexnet.jpeg import read_jpg
from chexnet.labels import check_image_ids, some_of
from chexnet.workers import cores

__all__ = ["ImageStore", "box_masks", "prepare_film", "scale_boxes"]

# Part of every cache's name: a change of the steps below must change it.
FORMAT = 1
# Caches of one image size and equalisation that may lie side by side (train, val, test, one more).
CACHES_KEPT = 4
# Unfinished files older than this were left behind by a process that was killed.
LEFT_BEHIND_SECONDS = 24 * 3600
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
    equalisation at most `CACHES_KEPT` files are kept, the latest used.

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
        if image_size < 8 or tiles < 1 or not (clip_limit is None or clip_limit > 0):
            raise ValueError(
                f"image_size={image_size}, clip_limit={clip_limit}, tiles={tiles}: allowed are "
                "image_size >= 8, clip_limit > 0 or None, tiles >= 1"
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
        self._equalise = (None if clip_limit is None else float(clip_limit), tiles)
        cache = self.folder.parent / "cache" if cache is None else Path(cache)
        self.path = self._cache_path(cache)
        built = 0
        while (pixels := self._open()) is None:
            if built == MOST_BUILT:
                raise OSError(f"{self.path}: built {built} times, each time gone before its use")
            self._build(workers, progress)
            built += 1
        if built:
            self._tidy()
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
        shape = (len(self), self.image_size, self.image_size)
        try:
            pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
            whole = pixels.shape == shape and pixels.dtype == np.uint8
        except FileNotFoundError:
            return None
        except (ValueError, EOFError):
            whole = False
        if not whole:
            # No process of ours leaves such a file: the disk or somebody else did.
            raise ValueError(
                f"{self.path}: truncated or overwritten, {self.path.stat().st_size} bytes; allowed "
                f"are a header and the {np.prod(shape)} bytes of its films. Delete it, and it is "
                "built anew"
            )
        with contextlib.suppress(OSError):  # a read-only cache is a cache all the same
            os.utime(self.path)
        return np.asarray(pixels)

    def _build(self, workers: int | None, progress: bool) -> None:
        unfinished = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex}.part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        needed = len(self) * self.image_size**2
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:  # writing to a mapped file on a full disk would kill the process
            raise OSError(
                f"{self.path.parent}: {len(self)} films at {self.image_size} pixels need "
                f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; choose another cache "
                "folder or a smaller image_size"
            )
        try:
            pixels = np.lib.format.open_memmap(
                unfinished, mode="w+", dtype=np.uint8, shape=(len(self), *[self.image_size] * 2)
            )
            self._fill(pixels, workers or cores(), progress)
            pixels.flush()
            del pixels  # Windows does not rename a file that is mapped
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _fill(self, pixels: np.ndarray, workers: int, progress: bool) -> None:
        rows = np.asarray(pixels)
        # glibc gives memory of a film's size back to the system at once, which costs a tenth of all
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

    def _tidy(self) -> None:
        alike = self.path.name.rsplit("-", 1)[0]
        finished = sorted(self.path.parent.glob(f"{alike}-*.npy"), key=_changed, reverse=True)
        since = time.time() - LEFT_BEHIND_SECONDS
        unfinished = self.path.parent.glob(".films-*.part")
        left_behind = [path for path in unfinished if _changed(path) < since]
        for path in finished[CACHES_KEPT:] + left_behind:
            if path != self.path:
                with contextlib.suppress(OSError):  # on Windows another process may hold it open
                    path.unlink()


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


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process tidied it away
        return 0.0
