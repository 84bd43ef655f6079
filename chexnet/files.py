"""Files: written whole or not at all, locked, named plainly, read as pictures."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock, Timeout

_END_OF_IMAGE = b"\xff\xd9"  # ITU-T T.81 table B.1, EOI

UNFINISHED = ".part"  # ends the name of a file that is being written
# An id names a file of ours, so it must be a plain name: no separator, no leading dot, not long.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def check_image_id(image_id: str) -> str:
    """Returns a name that can safely be a file's, unchanged.

    Raises:
        ValueError: it is empty, longer than 128 characters, begins with a dot or a dash, or holds
            anything but ASCII letters, digits, dot, dash and underscore.
    """
    if not PLAIN_NAME.fullmatch(image_id):
        raise ValueError(
            f"image_id {image_id[:40]!r}: 1 to 128 of A-Z a-z 0-9 . _ - are allowed, "
            "beginning with a letter, digit or underscore"
        )
    return image_id


def write_atomic(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Writes a file that is whole or not there, with ``sync`` even after a power cut."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left half-written in a folder that this one now holds."""
    for path in folder.glob(f".*{UNFINISHED}*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Holds a lock while the ``with`` block runs; it ends with the process, even when killed.

    Args:
        path: the lock file. It stays there, empty.
        message: of the error if the lock is taken.

    Raises:
        BlockingIOError: another process or thread holds the lock.
        OSError: the file cannot be opened or locked.
    """
    try:
        lock = FileLock(path, blocking=False).acquire()
    except Timeout:
        raise BlockingIOError(message) from None
    with lock:
        yield


def read_image(path: Path) -> np.ndarray:
    """Decodes a film.

    Args:
        path: of a JPG.

    Returns:
        uint8 ``(H, W)``, grey.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is cut short, or no picture.
    """
    data = path.read_bytes()
    # OpenCV fills the missing part of a cut file with grey and says nothing.
    if _END_OF_IMAGE not in data[-1024:]:
        raise ValueError("cut short: no end-of-image marker")
    # Boxes are in stored pixels, so a rotation asked for in EXIF must not be done here.
    film = cv2.imdecode(
        np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    )
    if film is None:
        raise ValueError("not a picture that OpenCV reads")
    return film


def check_image_ids(image_ids: Iterable[str], source: object) -> None:
    """Refuses ids that could name a file outside the folder they belong to.

    Args:
        image_ids: ids from an annotation file.
        source: what to name in the error, such as the file's path.

    Raises:
        ValueError: an id is no plain name: 1 to 128 of the characters ``A-Z a-z 0-9 . _ -``, the
            first no dot or hyphen.
    """
    refused = [i for i in image_ids if not (isinstance(i, str) and PLAIN_NAME.fullmatch(i))]
    refuse(
        source,
        [ascii(image_id)[:80] for image_id in refused],
        "ids that are no plain names",
        "1 to 128 of A-Z a-z 0-9 . _ -, the first no dot or hyphen",
    )


def summarize(names: Iterable[object], most: int = 5) -> str:
    """The first few of many names, for an error message: ``"a, b, c, d, e and 7 more"``."""
    names = [str(name) for name in names]
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def refuse(source: object, names: Iterable[object], what: str, allowed: str = "") -> None:
    """Raises a ValueError that names the source and the first few of the names, if there are any.

    Args:
        source: what to name first, such as a file's path.
        names: what is wrong, such as image ids.
        what: what is wrong with them.
        allowed: what is expected instead.
    """
    names = list(dict.fromkeys(names))
    if names:
        rule = f"; allowed: {allowed}" if allowed else ""
        raise ValueError(f"{source}: {len(names)} {what}: {summarize(names)}{rule}")


def cores() -> int:
    """How many cores this process may use; where the system does not say, how many there are."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return found or 1
