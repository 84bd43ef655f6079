"""Which files a folder holds, what became of each, and how that is remembered.

``films.csv`` in the target folder has one row a file. While a run is under way each row is added to
``films.journal`` as soon as its JPG stands, so a run that is killed goes on where it stopped.
"""

import contextlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from chexnet.files import check_image_id, locked, write_atomic

TABLE, JOURNAL, LOCK = "films.csv", "films.journal", ".films.lock"
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
    "recipe": "Int64",
}
_NEVER_MISSING = ("image_id", "file", "status", "reason", "stored")
_BLANK = dict.fromkeys(COLUMNS) | {"stored": ""}

Row = dict[str, object]


class Source(NamedTuple):
    """A file that may be a film."""

    file: str  # its path inside the source folder, with "/", for the table
    path: str  # where to read it
    image_id: str  # the name of its JPG
    size: int  # in bytes
    time_ns: int  # of its last change, ns since 1970


def row_of(source: Source, status: str, reason: str = "", **facts: object) -> Row:
    """One row of the table; what is not given is missing."""
    known = {"image_id": source.image_id, "file": source.file, "status": status, "reason": reason}
    size = {"source_bytes": source.size, "source_time_ns": source.time_ns}
    return _BLANK | known | size | facts


def find_files(folder: Path, leave_out: Path) -> tuple[list[Source], list[Row]]:
    """Every file below a folder, sorted by its path there.

    Args:
        folder: where to look; resolved.
        leave_out: a folder that is not entered; resolved.

    Returns:
        The files that may be films, and rows for what is refused unread: names that cannot be an
        image_id, links that lead out of the folder, links to folders, pipes and devices, folders
        that cannot be listed, and two DICOM files with one image_id.
    """
    found, refused, pending = [], [], [(str(folder), "")]
    while pending:
        path, prefix = pending.pop()
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            refused.append(row_of(Source(prefix, path, "", 0, 0), "failed", _why(error)))
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if Path(entry.path) != leave_out:
                    pending.append((entry.path, f"{prefix}{_shown(entry.name)}/"))
                continue
            source = Source(prefix + _shown(entry.name), entry.path, stem(entry.name), 0, 0)
            try:
                source = source._replace(**_facts(entry, folder))
                check_image_id(source.image_id, "file name")
            except (OSError, ValueError) as error:
                why = _why(error) if isinstance(error, OSError) else str(error)
                refused.append(row_of(source._replace(image_id=""), "failed", why))
            else:
                found.append(source)
    found, clashes = _without_clashes(sorted(found))
    return found, refused + clashes


def _shown(name: str) -> str:
    # Bytes that are no text, and a bare CR, would not survive being written to a table.
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\r", "\\r")


def _why(error: OSError) -> str:
    # Without the file's name: the table has it, and a path may say more than it should.
    return f"cannot be read: {error.strerror or type(error).__name__}"


def stem(name: str) -> str:
    """A file's name without its suffix: the image_id, if it can be one."""
    # The last part of a UID, such as 1.2.840.10008, is no suffix.
    front, _, suffix = name.rpartition(".")
    return name if not front or suffix.isdecimal() else front


def _facts(entry: os.DirEntry, folder: Path) -> dict[str, int]:
    """Size and time of a regular file that lies in the folder."""
    if entry.is_symlink():
        if not Path(os.path.realpath(entry.path)).is_relative_to(folder):
            raise ValueError("a link that leads out of the folder; not followed")
        if entry.is_dir():
            raise ValueError("a link to a folder; not followed")
    facts = entry.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("not a regular file")
    return {"size": facts.st_size, "time_ns": facts.st_mtime_ns}


def _without_clashes(found: list[Source]) -> tuple[list[Source], list[Row]]:
    """Refuses DICOM files that share an image_id; upper and lower case are one on many disks."""
    claims: dict[str, list[Source]] = {}
    for source in found:
        claims.setdefault(source.image_id.casefold(), []).append(source)
    refused = []
    for claim in claims.values():
        films = [film for film in claim if len(claim) > 1 and _looks_like_dicom(film.path)]
        for film in films if len(films) > 1 else ():
            other = films[1] if film is films[0] else films[0]
            reason = f"its image_id is also that of {other.file}; neither is converted"
            refused.append(row_of(film, "failed", reason))
    gone = {row["file"] for row in refused}
    return [source for source in found if source.file not in gone], refused


def _looks_like_dicom(path: str) -> bool:
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False


def as_table(rows: list[Row]) -> pd.DataFrame:
    """Rows to a table with the columns and types of ``COLUMNS``, sorted by file."""
    rows = sorted(rows, key=lambda row: str(row["file"]))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def read_films(target: str | Path) -> pd.DataFrame:
    """The table that ``convert_folder`` left in its target folder.

    Returns:
        One row a file with the columns of ``COLUMNS``: integers are nullable, ``view`` and ``sex``
        missing where unknown.

    Raises:
        FileNotFoundError: there is none.
        ValueError: ``films.csv`` is there but is not such a table.
    """
    path = Path(target) / TABLE
    blank = {name: [""] for name in COLUMNS if name not in _NEVER_MISSING}
    try:
        table = pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, na_values=blank)
    except (ValueError, TypeError, OverflowError):  # the last two for numbers that are none
        table = pd.DataFrame()
    if list(table.columns) != list(COLUMNS):
        raise ValueError(f"{path}: not a table of convert_folder; its columns are {list(COLUMNS)}")
    return table


def write_films(target: Path, table: pd.DataFrame) -> None:
    """Writes ``films.csv``, if it would change."""
    text = table.to_csv(index=False, lineterminator="\n").encode()
    path = target / TABLE
    if not path.is_file() or path.read_bytes() != text:
        write_atomic(path, text, sync=True)


def _told_by_table(target: Path) -> dict[str, Row]:
    """The rows of ``films.csv`` by file; none, with a warning, where a power cut damaged it."""
    path, header = target / TABLE, ",".join(COLUMNS).encode()
    try:
        table = read_films(target).astype(object)
    except ValueError:
        # Empty, cut or full of zeros; anything else is somebody's own and stays.
        if not header.startswith(path.read_bytes()[: len(header)].rstrip(b"\0")):
            raise
        warnings.warn(f"{path}: damaged; films are converted anew", RuntimeWarning, stacklevel=5)
        return {}
    return {row["file"]: row for row in table.where(table.notna(), None).to_dict("records")}


@contextlib.contextmanager
def remembering(target: Path) -> Iterator[tuple[dict[str, Row], Callable[[list[Row]], None]]]:
    """Keeps the journal of one run, and other runs out of its folder.

    Yields:
        What earlier runs did, by file; and a function that adds rows.

    Raises:
        BlockingIOError: another run is writing to this folder.
        ValueError: its ``films.csv`` is not that of a run.
    """
    path = target / JOURNAL
    message = f"{target}: another run is converting into this folder"
    with locked(target / LOCK, message), path.open("a+b") as journal:
        known = _told_by_table(target) if (target / TABLE).exists() else {}
        journal.seek(0)
        for line in journal:
            # The last lines of a killed run may be torn, after a power cut be anything.
            with contextlib.suppress(ValueError, TypeError):
                row = json.loads(line)
                if isinstance(row, dict) and row.keys() == COLUMNS.keys():
                    known[row["file"]] = row

        def add(rows: list[Row]) -> None:
            journal.write("".join(f"\n{json.dumps(row)}\n" for row in rows).encode())
            journal.flush()

        yield known, add
        journal.close()  # Windows removes no open file
        path.unlink(missing_ok=True)
