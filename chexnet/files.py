"""Files: atomic writing, locks, image ids as file names, reading a table or an image."""

import contextlib
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import simplejpeg
from filelock import FileLock, Timeout

__all__ = [
    "check_image_id", "enter_project", "full_id", "locked", "path_id", "read_image", "read_table",
    "short_ids", "write_atomic",
]  # fmt: skip

UNFINISHED = ".part"  # ends the name of a file that is being written
_LONGEST_ID = 128  # characters; a file name has at most 255 bytes
_SHORT_ID = 8  # characters
_IMAGE_ID = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{_LONGEST_ID - 1}}}")
# Devices of Windows, whatever the suffix ("Naming Files, Paths, and Namespaces").
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(\..*)?", re.IGNORECASE)
_MOST_COLUMNS, _LONGEST_HEAD = 4096, 1_000_000  # of a table; characters of its first line
_LONGEST_JSON = 64_000_000  # bytes
# The first bytes of a JPEG (ITU-T T.81 table B.1, SOI) and of a PNG (PNG specification 5.2).
SOI, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"


def check_image_id(image_id: object, source: object) -> str:
    """Returns an image id that is safe as a file name: it cannot lead to another folder.

    Args:
        image_id: the id to check.
        source: where it comes from, such as a file's path; the error begins with it.

    Raises:
        ValueError: it is not 1 to 128 of the characters ``A-Z a-z 0-9 . _ -``, it begins with a
            dot or a hyphen, or it is the name of a device on Windows, such as CON.

    Example:
        >>> from chexnet.files import check_image_id
        >>> check_image_id("00000001_000", "images.csv")
        '00000001_000'
    """
    if isinstance(image_id, str) and _is_plain(image_id):
        return image_id
    raise ValueError(
        f"{source}: invalid image_id {str(image_id)[:40]!r}; expected 1 to 128 of A-Z a-z 0-9 . _ "
        "-, not beginning with . or - and not a device of Windows (CON, NUL)"
    )


def _is_plain(name: str) -> bool:
    return bool(_IMAGE_ID.fullmatch(name)) and not _DEVICE.fullmatch(name)


def path_id(relative: str, *, unique: bool = False) -> str:
    """Makes a safe image id of a file's path below a folder.

    The path without suffix, with "_" for each "/". A hash of the path is appended where that
    would change or shorten the text: accents and umlauts lose their marks, other characters than
    ``A-Z a-z 0-9 . _ -`` become "_".

    Args:
        relative: the path, with "/" between folders.
        unique: append the hash in any case, since other paths may give the same text: "a/b_c" and
            "a_b/c", "a.dcm" and "a.png".

    Returns:
        An id that ``check_image_id`` accepts; the same for the same path, on every machine.

    Example:
        >>> from chexnet.files import path_id
        >>> path_id("patient00001/study1/view1_frontal.jpg")
        'patient00001_study1_view1_frontal'
        >>> path_id("Müller, Änne/IM 1.dcm")
        'Muller_Anne_IM_1-d266c98a'
    """
    # Some file systems store "ä" as one character, others as "a" and its dots.
    relative = unicodedata.normalize("NFC", relative)
    folders, _, name = relative.rpartition("/")
    wanted = f"{folders}/{stem(name)}".lstrip("/").replace("/", "_")
    plain = wanted
    if not plain.isascii():
        letters = unicodedata.normalize("NFKD", wanted)
        plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    safe = re.sub(r"^[.-]", "_", re.sub(r"[^A-Za-z0-9._-]+", "_", plain)) or "_"
    if safe == wanted and _is_plain(safe) and not unique:
        return safe
    digest = hashlib.sha256(relative.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    safe = re.sub(r"\..*", "", safe) if _DEVICE.fullmatch(safe) else safe
    return f"{safe[: _LONGEST_ID - 9]}-{digest}"


def short_ids(image_ids: Iterable[str]) -> dict[str, str]:
    """The shortest beginning of each image id that no other id has, as git shortens commits.

    Args:
        image_ids: all ids among which the short ones must be unique.

    Returns:
        id to short id, of at least 8 characters. An id with which another one begins stays whole.

    Example:
        >>> from chexnet.files import short_ids
        >>> short_ids(["00000013_005", "00000013_012", "0004cfab-14fd"])
        {'00000013_005': '00000013_00', '00000013_012': '00000013_01', '0004cfab-14fd': '0004cfab'}
    """
    ordered = sorted(set(image_ids))
    shared = [
        next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), len(one))  # noqa: B905
        for one, other in itertools.pairwise(ordered)
    ]
    return {
        one: one[: max(_SHORT_ID, before + 1, after + 1)]
        for one, before, after in zip(ordered, [0, *shared], [*shared, 0], strict=True)
    }


def full_id(given: str, image_ids: Iterable[str], source: object) -> str:
    """The image id that is ``given``, or the only one that begins with it.

    Args:
        given: an id or its beginning.
        image_ids: the ids to choose from.
        source: the error begins with it.

    Raises:
        ValueError: no id begins so, or several do.

    Example:
        >>> from chexnet.files import full_id
        >>> full_id("0004", ["0004cfab-14fd", "00313ee0-9eaa"], "image_ids")
        '0004cfab-14fd'
    """
    image_ids = list(image_ids)
    if given in image_ids:
        return given
    found = [image_id for image_id in image_ids if given and image_id.startswith(given)]
    if len(found) == 1:
        return found[0]
    problem = f"begins {len(found)} ids: {summarize(found)}" if found else "begins no id"
    raise ValueError(f"{source}: {given!r} {problem}; expected one of {len(image_ids)} image ids")


def stem(name: str) -> str:
    """A file's name without its suffix; a UID such as 1.2.840.10008 has none."""
    front, _, suffix = name.rpartition(".")
    return name if not front or suffix.isdecimal() else front


def write_atomic(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Writes a file under another name, then renames it: it is complete or not there.

    Args:
        path: the file; replaced if it exists. Its folder must exist.
        data: its content.
        sync: also wait until it is on the disk, so that it survives a power cut.

    Raises:
        OSError: it cannot be written, with its path; what was there before is unchanged.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.files import write_atomic
        >>> write_atomic(Path("data/notes.txt"), b"Some notes.")
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with naming(path):
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


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in the ``with`` block names this file: "No space left on device" names none."""
    try:
        yield
    except OSError as error:
        if not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_unfinished(folder: Path) -> None:
    """Removes the files that killed processes left unfinished; nobody else may write there."""
    for path in folder.glob(f".*{UNFINISHED}*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(lock: Path | FileLock, message: str, *, wait: float = 0) -> Iterator[None]:
    """Holds a lock while the ``with`` block runs; it ends with the process, even when killed.

    Args:
        lock: the lock file, which stays there, empty; or a ``FileLock``, which the thread that
            holds it may take again.
        message: of the error if the lock is taken.
        wait: seconds to wait for it.

    Raises:
        BlockingIOError: another process or thread holds the lock.
        OSError: the file cannot be opened or locked.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.files import locked
        >>> with locked(Path("data/.lock"), "data: in use by another process"):
        ...     print("nobody else is in here")
        nobody else is in here
    """
    lock = lock if isinstance(lock, FileLock) else FileLock(lock)
    try:
        acquired = lock.acquire(timeout=wait)
    except Timeout:
        raise BlockingIOError(message) from None
    with acquired:
        yield


def read_image(path: Path) -> np.ndarray:
    """Decodes a film in a JPEG file: uint8 ``(H, W)``, 0 is black.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JPEG file, truncated, or cannot be decoded.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.files import read_image, read_table
        >>> images = read_table(Path("data/phantom/images.csv"))
        >>> read_image(Path(f"data/phantom/jpg/{images['image_id'][0]}.jpg")).shape
        (256, 256)
    """
    try:
        # Boxes are in stored pixels, so the rotation that EXIF may ask for is not applied.
        return decode_jpeg(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def decode_jpeg(data: bytes, *, smallest: bool = False) -> np.ndarray:
    """Decodes a JPEG to gray; all of it, or an error.

    simplejpeg passes on what libjpeg finds wrong with the coded data; OpenCV and Pillow fill what
    is missing with gray. It is also faster; the pixels are the same.

    Args:
        data: the content of the file; what comes after its end does not matter.
        smallest: decode one pixel for 8 x 8, which takes less time and finds the same errors.

    Returns:
        uint8 ``(H, W)``, 0 is black; of a color picture the luminance.

    Raises:
        ValueError: not a JPEG, truncated or damaged.
    """
    if not data:
        raise ValueError("empty file")
    if not data.startswith(SOI):
        found = " (looks like PNG)" if data.startswith(PNG) else ""
        raise ValueError(f"not a JPEG file{found}")
    size = {"min_height": 1, "min_width": 1, "min_factor": 1} if smallest else {}
    try:
        return simplejpeg.decode_jpeg(data, "GRAY", strict=True, **size)[..., 0]
    except ValueError as error:
        raise ValueError(f"truncated or damaged JPEG file: {error}") from None


def shrink(pixels: np.ndarray, longest: int) -> np.ndarray:
    """A picture ``(H, W)``, shrunk where its longer side has more than ``longest`` pixels."""
    share = longest / max(pixels.shape)
    if share >= 1:
        return pixels
    height, width = (max(1, round(share * side)) for side in pixels.shape)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Reads a CSV file in which ``image_id`` and ``patient_id`` are text, as in ``images.csv``.

    Only an empty field is missing: "NA" is text.

    Args:
        path: the file; may be gzipped.
        options: more arguments of ``pandas.read_csv``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a CSV file, or it has more than 4,096 columns.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.files import read_table
        >>> len(read_table(Path("data/phantom/images.csv")))
        40
    """
    ids = {"image_id": str, "patient_id": str}
    options = {"dtype": ids, "keep_default_na": False, "na_values": [""]} | options
    opened = gzip.open if str(path).endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            head = file.readline(_LONGEST_HEAD)
        columns = head.count(b",") + 1
        if columns <= _MOST_COLUMNS and len(head) < _LONGEST_HEAD:
            return pd.read_csv(path, **options)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a CSV file ({shorten(error)})") from None
    raise ValueError(
        f"{path}: {columns} columns or more in a first line of {len(head)} bytes; expected at "
        f"most {_MOST_COLUMNS} columns"
    )


def read_json(path: Path) -> dict:
    """Reads a JSON file that holds a dict.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, not a dict, above 64 MB, nested too deep, or it has a NaN or an
            infinity, which JSON does not have.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.files import read_json
        >>> read_json(Path("output/demo/config.json"))["films"]["test"]
        10
    """
    size = path.stat().st_size
    if size > _LONGEST_JSON:
        raise ValueError(f"{path}: {size / 1e6:.0f} MB; expected at most {_LONGEST_JSON / 1e6:.0f}")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {shorten(error)}") from None


def parse_json(content: bytes) -> dict:
    """The dict of a JSON text; a ValueError says what is wrong, without the file's name."""

    def not_json(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        found = json.loads(content, parse_constant=not_json)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError as error:
        raise ValueError(f"damaged ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}; expected a dict")
    return found


def enter_project() -> Path:
    """Makes the project's folder the current one, wherever below it a notebook is run.

    Returns:
        the nearest folder, from the current one upwards, that holds both ``data`` and ``output``.

    Raises:
        FileNotFoundError: there is no such folder.

    Example:
        >>> from chexnet.files import enter_project
        >>> project = enter_project()
        >>> (project / "data").is_dir()
        True
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "data").is_dir() and (folder / "output").is_dir():
            os.chdir(folder)
            return folder
    raise FileNotFoundError(f"{here}: expected a folder below one that holds data/ and output/")


def flat(values: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Values of dicts within a dict under one name each: ``{"training.epochs": 24}``."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def shorten(text: object) -> str:
    """A text of at most 300 characters, for a message."""
    words = str(text)
    return words if len(words) <= 300 else f"{words[:297]}..."


def summarize(names: Iterable[object]) -> str:
    """The first few of many names, for an error message: ``"a, b, c, d, e and 7 more"``."""
    listed = [shorten(name) for name in names]
    rest = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + rest


def refuse(source: object, names: Iterable[object], what: str, expected: str = "") -> None:
    """Raises a ValueError, ``source: 2 what: name, name; expected: ...``, if there are names."""
    names = list(dict.fromkeys(names))
    if names:
        rule = f"; expected: {expected}" if expected else ""
        raise ValueError(f"{source}: {len(names)} {what}: {summarize(names)}{rule}")


def check_number(
    name: str,
    value: Any,
    *,
    integer: bool = False,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raises a ValueError that names an argument unless it is a number within bounds.

    True, False, NaN, infinity and strings of digits are not numbers here.
    """
    is_number = isinstance(value, Integral if integer else Real) and not isinstance(value, bool)
    if is_number and above < value < below and least <= value <= most:
        return
    bounds = {">=": least, ">": above, "<": below}
    rule = " and ".join(f"{sign} {end}" for sign, end in bounds.items() if math.isfinite(end))
    rule = f"from {least} to {most}" if math.isfinite(most) else rule
    kind = "an integer" if integer else "a number"
    raise ValueError(f"{name}={value!r}: expected {kind} {rule}".rstrip())
