"""The files of a folder, and ``films.csv``: one row for each of them.

The table also lets ``convert_folder`` resume: it says which JPG was made from which file.
"""

import contextlib
import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from chexnet.files import check_image_id, write_atomic

TABLE = "films.csv"
# Rows, columns in pixels; age in years; sizes in bytes; time of the last change in ns since 1970.
COLUMNS = {
    "image_id": "str",
    "file": "str",
    "status": "str",
    "reason": "str",
    "rows": "Int64",
    "columns": "Int64",
    "view": "str",
    "sex": "str",
    "age": "Int64",
    "stored": "str",
    "quality": "Int64",
    "jpg_bytes": "Int64",
    "source_bytes": "Int64",
    "source_time_ns": "Int64",
    "version": "Int64",
}
_NEVER_MISSING = ("image_id", "file", "status", "reason", "stored")

Row = dict[str, Any]


class Source(NamedTuple):
    """A file that may be a film."""

    file: str  # its path inside the source folder, with "/", for the table
    path: str  # where to read it
    image_id: str  # the name of its JPG
    size: int  # in bytes
    time_ns: int  # of its last change, ns since 1970


def row_of(film: Source, status: str, reason: str = "", **facts: object) -> Row:
    """One row of the table; columns that are not given are missing."""
    row = {"image_id": film.image_id, "file": film.file, "status": status, "reason": reason}
    known = {"stored": "", "source_bytes": film.size, "source_time_ns": film.time_ns}
    return row | known | facts


def find_files(folder: Path, leave_out: Path) -> tuple[list[Source], list[Row]]:
    """Every file below a folder, sorted by its path there.

    Args:
        folder: where to look; resolved.
        leave_out: a folder that is not searched; resolved.

    Returns:
        The files that may be films, and rows of those that are not read: an invalid image_id, a
        link that leads out of the folder or to a folder, a pipe or device, a folder that cannot be
        listed, and DICOM files with the same image_id.
    """
    found, failed, pending = [], [], [(str(folder), "")]
    while pending:
        path, prefix = pending.pop()
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            failed.append(_failed(prefix, error))
            continue
        for entry in entries:
            # Bytes that are not text, and a bare CR, would be changed by writing them to a table.
            name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            file = prefix + name.replace("\r", "\\r")
            if entry.is_dir(follow_symlinks=False):
                if Path(entry.path) != leave_out:
                    pending.append((entry.path, f"{file}/"))
                continue
            try:
                found.append(_source(entry, file, folder))
            except (OSError, ValueError) as error:
                failed.append(_failed(file, error))
    found, duplicates = _without_duplicates(sorted(found))
    return found, failed + duplicates


def _failed(file: str, error: Exception) -> Row:
    reason = str(error)
    if isinstance(error, OSError):  # its text has the whole path
        reason = f"cannot be read: {error.strerror or type(error).__name__}"
    return row_of(Source(file, "", "", 0, 0), "failed", reason)


def _source(entry: os.DirEntry, file: str, folder: Path) -> Source:
    """Checks that an entry is a regular file inside the folder and that its name is an image_id."""
    if entry.is_symlink():
        if not Path(os.path.realpath(entry.path)).is_relative_to(folder):
            raise ValueError("a link that leads out of the folder; not followed")
        if entry.is_dir():
            raise ValueError("a link to a folder; not followed")
    facts = entry.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("not a regular file")
    image_id = check_image_id(stem(entry.name), "file name")
    return Source(file, entry.path, image_id, facts.st_size, facts.st_mtime_ns)


def stem(name: str) -> str:
    """A file's name without its suffix; the last part of a UID, as in 1.2.840.10008, is none."""
    front, _, suffix = name.rpartition(".")
    return name if not front or suffix.isdecimal() else front


def _without_duplicates(found: list[Source]) -> tuple[list[Source], list[Row]]:
    """Leaves out DICOM files with the same image_id, upper and lower case being the same."""
    same = defaultdict(list)
    for source in found:
        same[source.image_id.casefold()].append(source)
    failed = []
    for sources in same.values():
        films = [s for s in sources if len(sources) > 1 and _looks_like_dicom(s.path)]
        for film in films if len(films) > 1 else ():
            other = films[1] if film is films[0] else films[0]
            reason = f"same image_id as {other.file}; neither is converted"
            failed.append(row_of(film, "failed", reason))
    left_out = {row["file"] for row in failed}
    return [source for source in found if source.file not in left_out], failed


def _looks_like_dicom(path: str) -> bool:
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False


def as_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows to a table with the columns and types of ``COLUMNS``, sorted by file."""
    rows = sorted(rows, key=lambda row: row["file"])
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def read_films(target: str | Path) -> pd.DataFrame:
    """Reads ``films.csv``, the table that ``convert_folder`` writes into its target folder.

    Args:
        target: that folder.

    Returns:
        One row a file, columns as of ``convert_folder``. Integers are nullable; ``view`` and
        ``sex`` are missing if not known.

    Raises:
        FileNotFoundError: there is no ``films.csv``.
        ValueError: ``films.csv`` is not such a table.

    Example:
        >>> from chexnet.dicom import read_films
        >>> films = read_films("data/phantom/jpg")
        >>> films["status"].value_counts().to_dict()
        {'copied': 40}
    """
    path = Path(target) / TABLE
    blank = {name: [""] for name in COLUMNS if name not in _NEVER_MISSING}
    try:
        table = pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, na_values=blank)
    except (ValueError, TypeError, OverflowError):  # the last two: not a number where one must be
        table = pd.DataFrame()
    if list(table.columns) != list(COLUMNS):
        raise ValueError(f"{path}: not a table of convert_folder; expected columns {list(COLUMNS)}")
    return table


def known_rows(target: Path) -> dict[str, Row]:
    """Rows of earlier runs, by file; none, with a warning, if ``films.csv`` is damaged.

    Raises:
        ValueError: ``films.csv`` is somebody else's table.
    """
    path, header = target / TABLE, ",".join(COLUMNS).encode()
    try:
        table = read_films(target).astype(object)
    except FileNotFoundError:
        return {}
    except ValueError:
        # A failing disk leaves it empty, truncated or full of zeros.
        if not header.startswith(path.read_bytes()[: len(header)].rstrip(b"\0")):
            raise
        message = f"{path}: damaged; all films are converted again"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        return {}
    return {row["file"]: row for row in table.where(table.notna(), None).to_dict("records")}


def write_films(target: Path, table: pd.DataFrame) -> None:
    """Writes ``films.csv``, if it would change."""
    text = table.to_csv(index=False, lineterminator="\n").encode()
    path = target / TABLE
    if not path.is_file() or path.read_bytes() != text:
        write_atomic(path, text, sync=True)
