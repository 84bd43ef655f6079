"""The files of a folder, and ``films.csv``: one row for each of them.

The table also lets ``convert_folder`` resume: it says which JPG was made from which file.
"""

import contextlib
import os
import re
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from chexnet.dicom.header import HEAD, FilmError, looks_like_dicom, read_uid
from chexnet.dicom.picture import looks_like_picture
from chexnet.files import check_image_id, path_id, read_table, stem, write_atomic

TABLE, LOCK = "films.csv", ".films.lock"
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
_UID = re.compile(r"[0-9][0-9.]{0,63}")  # PS3.5 9.1
_NEVER_MISSING = ("image_id", "file", "status", "reason", "stored")

Row = dict[str, Any]


class Source(NamedTuple):
    """A file that may be a film."""

    file: str  # its path inside the source folder, with "/", for the table
    path: str = ""  # where to read it
    image_id: str = ""  # the name of its JPG
    size: int = 0  # in bytes
    time_ns: int = 0  # of its last change, ns since 1970


def row_of(film: Source, status: str, reason: str = "", **facts: object) -> Row:
    """One row of the table; columns that are not given are missing."""
    row = {"image_id": film.image_id, "file": film.file, "status": status, "reason": reason}
    known = {"stored": "", "source_bytes": film.size, "source_time_ns": film.time_ns}
    return row | known | facts


def image_ids(folder: str | Path, ids: str = "name") -> dict[str, str]:
    """The image id of every file below a folder, as ``convert_folder`` gives them.

    A table of labels that names files is matched to their JPGs with this.

    Args:
        folder: the films, as given to ``convert_folder``.
        ids: the rule, as given to ``convert_folder``.

    Returns:
        Image id by file (its path below ``folder``, with "/"). No id occurs twice.

    Raises:
        NotADirectoryError: ``folder`` is not a folder.
        ValueError: ``ids`` is not one of the rules.

    Warns:
        RuntimeWarning: files are left out, since they cannot be read or get no id.

    Example:
        >>> from chexnet.dicom import image_ids
        >>> ids = image_ids("data/phantom/study/stage_2_train_images")
        >>> file = min(ids)
        >>> file == f"{ids[file]}.dcm"
        True
    """
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"{folder}: not a folder")
    found, failed = find_files(Path(folder).resolve(), None, ids)
    if failed:
        first = f"{failed[0]['file']} ({failed[0]['reason']})"
        message = f"{folder}: {len(failed)} files are left out, such as {first}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return {source.file: source.image_id for source in found}


def find_files(
    folder: Path, leave_out: Path | None, ids: str = "name"
) -> tuple[list[Source], list[Row]]:
    """Every file below a folder, sorted by its path there.

    Args:
        folder: where to look; resolved.
        leave_out: a folder that is not searched; resolved.
        ids: "name", "path" or "uid", see ``convert_folder``.

    Returns:
        The files that may be films, and rows of what is not read: a link that leads out of the
        folder or to a folder, a pipe or device, a folder that cannot be listed or holds JPGs of
        ``convert_folder``, and files that get no image id.

    Raises:
        ValueError: ``ids`` is another rule.
    """
    if ids not in ("name", "path", "uid"):
        raise ValueError(f"ids={ids!r}: expected 'name', 'path' or 'uid'")
    found, failed, pending = [], [], [(str(folder), "")]
    while pending:
        path, prefix = pending.pop()
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            failed.append(_failed(Source(prefix), error))
            continue
        is_target = any(entry.name == TABLE for entry in entries) and _is_target(Path(path))
        if is_target and prefix:
            reason = "JPGs of convert_folder; not searched"
            failed.append(row_of(Source(prefix), "failed", reason))
            continue
        for entry in entries:
            if is_target and entry.name in (TABLE, LOCK):  # JPGs of convert_folder as the films
                continue
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
                failed.append(_failed(Source(file), error))
    found.sort()
    named, unnamed = _name_by_uid(found) if ids == "uid" else _name_by_path(found, ids)
    return [source._replace(image_id=named[source]) for source in named], failed + unnamed


def _is_target(folder: Path) -> bool:
    """Whether ``convert_folder`` has written into a folder."""
    with contextlib.suppress(OSError), (folder / TABLE).open("rb") as file:
        return file.readline().startswith(b"image_id,file,status,reason,")
    return False


def _failed(source: Source, error: Exception) -> Row:
    reason = str(error)
    if isinstance(error, OSError):  # its text has the whole path
        reason = f"cannot be read: {error.strerror or type(error).__name__}"
    return row_of(source, "failed", reason)


def _source(entry: os.DirEntry, file: str, folder: Path) -> Source:
    """A file that has no id yet; checks that it is a regular one inside the folder."""
    if entry.is_symlink():
        if not Path(os.path.realpath(entry.path)).is_relative_to(folder):
            raise ValueError("a link that leads out of the folder; not followed")
        if entry.is_dir():
            raise ValueError("a link to a folder; not followed")
    facts = entry.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("not a regular file")
    return Source(file, entry.path, size=facts.st_size, time_ns=facts.st_mtime_ns)


def _possible_ids(file: str, ids: str = "name") -> Iterator[str]:
    """The ids that a file can get from its path, in the order in which they are tried."""
    if ids == "name":
        with contextlib.suppress(ValueError):
            yield check_image_id(stem(file.rpartition("/")[2]), file)
    yield path_id(file)
    yield path_id(file, unique=True)


def may_have_id(file: str, image_id: str) -> bool:
    """Whether an id that an edited table may name could have been given to a file."""
    return image_id in _possible_ids(file) or bool(_UID.fullmatch(image_id))


def _name_by_path(found: list[Source], ids: str) -> tuple[dict[Source, str], list[Row]]:
    """Gives each file the first of its possible ids that no other has.

    Of files with the same id the only film keeps it; if several are films, each gets its next
    possible id.
    """
    possible = {source: _possible_ids(source.file, ids) for source in found}
    named = {source: next(possible[source]) for source in found}
    is_film = cache(_looks_like_film)
    failed = []
    while groups := _same_ids(named):
        for sources in groups:
            films = [source for source in sources if is_film(source.path)]
            for source in sources:
                if films == [source]:
                    continue
                if another := next(possible[source], None):
                    named[source] = another
                else:
                    known = source._replace(image_id=named.pop(source))
                    failed.append(_same_as_another(known, "image_id", sources))
    return named, failed


def _name_by_uid(found: list[Source]) -> tuple[dict[Source, str], list[Row]]:
    """Gives each film its SOP Instance UID; films without one, or with the same one, fail."""
    named, failed = {}, []
    for source in found:
        try:
            named[source] = read_uid(source.path)
        except (OSError, FilmError) as error:
            failed.append(_failed(source, error))
    for sources in _same_ids(named):
        for source in sources:
            del named[source]
            failed.append(_same_as_another(source, "SOP Instance UID", sources))
    return named, failed


def _same_ids(named: dict[Source, str]) -> list[list[Source]]:
    """Groups of files with the same id; case is ignored, as on the disks of Windows and macOS."""
    same = defaultdict(list)
    for source, image_id in named.items():
        same[image_id.casefold()].append(source)
    return [sources for sources in same.values() if len(sources) > 1]


def _same_as_another(source: Source, what: str, sources: list[Source]) -> Row:
    other = next(other for other in sources if other.path != source.path)
    return row_of(source, "failed", f"same {what} as {other.file}; neither is converted")


def _looks_like_film(path: str) -> bool:
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        head = file.read(HEAD)
        return looks_like_dicom(head) or looks_like_picture(head)
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
        table = read_table(path, dtype=COLUMNS, na_values=blank)
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
