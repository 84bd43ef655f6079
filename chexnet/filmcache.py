"""A file of films that are ready for a network: there whole or not at all, and read by mapping."""

import contextlib
import io
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

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
