"""DICOM films to 8-bit JPGs, one or thirty thousand.

A film whose file already holds the right JPG is copied out of it (``jpeg.py``); others are read and
encoded (``film.py``). Nothing of a header but view, sex, age and size reaches a JPG, the table
(``filmtable.py``) or a message.

A long list worked off over any executor, though processes die on the way.

Nothing here knows of films: a task takes a list of items and returns as long a list of rows.
"""

import contextlib
import multiprocessing
import numbers
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import pandas as pd
from tqdm.auto import tqdm

from chexnet.dicom.film import Film, film_of
from chexnet.dicom.header import FilmError, read_bytes
from chexnet.dicom.jpeg import stored_jpeg
from chexnet.dicom.table import (
    Row,
    Source,
    as_table,
    find_files,
    remembering,
    row_of,
    stem,
    write_films,
)
from chexnet.files import UNFINISHED, write_atomic

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCH = 32  # items a task: long against the cost of sending it, short against a user's patience
_PATIENCE = 2.0  # seconds; a worker process takes about that long to start and import
_IN_FLIGHT = 1024  # tasks given at once to an executor whose size is not known
# Tasks that an executor may fail before its first success. One item that kills its process takes
# along what else that process held; an executor that can do nothing fails them all.
_FAILURES = 8


def work_off(
    items: list[Item],
    task: Callable[[list[Item]], list[Result]],
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    died: Callable[[Item], Result],
) -> Iterator[list[Result]]:
    """Yields the rows of all items, some at a time, in the order in which they are done.

    Args:
        items: what is to be done.
        task: does some of it. It can be pickled and raises nothing.
        executor: where to do it. By default this process, and once that has taken two seconds and
            would take more, new processes.
        workers: how many of those, by default one a core; 1 stays in this process.
        died: gives the row of an item that ended the process which worked on it.

    Warns:
        RuntimeWarning: no process can be started, or the executor has failed some or all tasks; the
            work goes on without.
    """
    workers = workers or cv2.getNumberOfCPUs()
    began, done = time.monotonic(), 0
    while executor is None and done < len(items):
        # Copying a few hundred films takes less than starting a process.
        yield task(items[done : done + 1])
        done += 1
        spent = time.monotonic() - began
        if workers > 1 and spent > _PATIENCE and spent / done * (len(items) - done) > _PATIENCE:
            break
    items = items[done:]
    size = max(1, min(_BATCH, len(items) // 16))
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    while batches:
        try:
            given = executor is not None
            with contextlib.nullcontext(executor) if given else _processes(workers) as pool:
                in_flight = _IN_FLIGHT if given else workers + 2
                failed, left, why = yield from _through(pool, task, batches, in_flight)
        except BrokenExecutor:
            # As in a script without `if __name__ == "__main__"`.
            warnings.warn(
                "no worker process can be started; going on in this one",
                RuntimeWarning,
                stacklevel=3,
            )
            yield from (task(batch) for batch in batches)
            return
        if given:
            # Own processes tell a task that kills them from an executor that is no good.
            failed, left = [], failed + left
            if left:
                warnings.warn(
                    f"the executor did not do {len(left)} of {len(batches)} tasks "
                    f"({type(why).__name__}: {why}); going on in own processes",
                    RuntimeWarning,
                    stacklevel=3,
                )
        for batch in failed:
            yield from _apart(task, batch, died)
        executor, batches = None, left


def _through(
    pool: Executor,
    task: Callable[[list[Item]], list[Result]],
    batches: list[list[Item]],
    in_flight: int,
) -> Generator[list[Result], None, tuple[list[list[Item]], list[list[Item]], Exception | None]]:
    """Works off batches, a bounded number at a time, unless the pool fails from the first on.

    Returns:
        Batches that came back with an error, one of which may have killed a process; batches that
        were not begun; and an error that says why.
    """
    waiting, failed, queue, why, works = {}, [], list(reversed(batches)), None, False
    while True:
        if not works and len(failed) >= _FAILURES:
            queue += [waiting.pop(future) for future in list(waiting) if future.cancel()]
        else:
            try:
                while queue and len(waiting) < in_flight:
                    waiting[pool.submit(task, queue[-1])] = queue[-1]
                    queue.pop()
            except RuntimeError as error:  # BrokenExecutor is one, so is a pool shut down
                why = why or error
        if not waiting:
            return failed, queue[::-1], why
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            batch = waiting.pop(future)
            try:
                rows = future.result()
            except Exception as error:
                # The task itself raises nothing: its process is gone, or its cluster.
                failed.append(batch)
                why = why or error
            else:
                works = True
                yield rows


def _apart(
    task: Callable[[list[Item]], list[Result]], batch: list[Item], died: Callable[[Item], Result]
) -> Iterator[list[Result]]:
    """Halves a batch until the item that kills its process is alone, and reports that one."""
    try:
        with _processes(1) as pool:
            yield pool.submit(task, batch).result()
    except BrokenExecutor:
        if len(batch) == 1:
            yield [died(batch[0])]
        else:
            yield from _apart(task, batch[: len(batch) // 2], died)
            yield from _apart(task, batch[len(batch) // 2 :], died)


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that know nothing of what this one has loaded: TensorFlow forbids forking.

    Raises:
        BrokenExecutor: none can be started.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        pool.submit(os.getpid).result()
        yield pool


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is killed, which nothing else would do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a user's Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


RECIPE = 1  # goes up when the same film would become another JPG, so that old ones are made again
_PLAIN = "JPEG Baseline (Process 1), 8 bits, MONOCHROME2"
_MADE = ("copied", "encoded")
_LONGEST_SIDE = 65_500  # pixels, libjpeg's JPEG_MAX_DIMENSION
_DIED = "the process that read it died (out of memory, or a decoder crashed)"


def convert_folder(
    source: str | Path,
    target: str | Path,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    quality: int = 95,
    progress: bool = True,
) -> pd.DataFrame:
    """Makes a JPG of every film below a folder, and a table of what became of each file.

    ``target/<image_id>.jpg`` is a film (``image_id`` is its file's name without suffix) and
    ``target/films.csv`` the table. Called again after any kind of stop it goes on where it was;
    films that are done and unchanged are left alone, failed ones are tried again. A film that no
    longer gives a picture loses its JPG. One that is gone from ``source`` keeps its JPG and loses
    its row: a wrong or half-mounted folder must not cost what has been made.

    Args:
        source: folder of DICOM files; subfolders are searched, links out of it are not followed.
        target: folder for the JPGs, made if need be; may lie in ``source``.
        executor: where to work, such as ``Client(...).get_executor()`` of a Dask cluster that sees
            both folders. By default this process, joined by others where that would take long.
        workers: how many others, by default one a core; 1 stays in this process.
        quality: of an encoded JPG, 1 to 100. Copied ones are as the file has them.
        progress: whether to show a bar.

    Returns:
        One row a file, sorted by ``file`` (its path below ``source``): ``image_id``; ``status``
        "copied" (the JPG stood in the file, its pixels are untouched), "encoded" or "failed";
        ``reason``, for "encoded" what was done to the pixels, for "failed" why; ``rows``,
        ``columns`` in pixels; ``view``, ``sex``, ``age`` in years, missing if not known;
        ``stored``, how the file held it; book-keeping (``quality``, ``jpg_bytes``,
        ``source_bytes``, ``source_time_ns``, ``recipe``); and, not in ``films.csv``, ``new``:
        whether this run made it.

    Raises:
        NotADirectoryError: ``source`` is no folder.
        FileNotFoundError: it holds no files.
        ValueError: ``target`` is ``source`` or has another's ``films.csv``, or ``quality`` is none.
        BlockingIOError: another run is converting into ``target``.

    Warns:
        RuntimeWarning: ``films.csv`` is damaged and made anew, or the executor or the processes
            failed and the work went on without.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    if not source.is_dir():
        raise NotADirectoryError(f"{source}: not a folder")
    if source == target:
        raise ValueError(f"{target}: the JPGs need a folder other than that of the films")
    if not isinstance(quality, numbers.Integral) or not 1 <= quality <= 100:
        raise ValueError(f"quality {quality!r}: 1 to 100 is allowed, as an integer")
    quality = int(quality)  # NumPy's cannot be written to the journal
    films, rows = find_files(source, target)
    if not films and not rows:
        raise FileNotFoundError(f"{source}: holds no files")
    target.mkdir(parents=True, exist_ok=True)
    with remembering(target) as (known, remember):
        sizes = _jpg_sizes(target)
        todo = []
        for film in films:
            row = known.get(film.file)
            if row is not None and _stands(row, film, sizes, quality):
                rows.append(row)
            else:
                todo.append(film)
        task = partial(_convert, target=target, quality=quality)
        made: set[object] = set()
        with tqdm(total=len(todo), unit="film", disable=not (progress and todo)) as bar:
            for batch in work_off(todo, task, executor=executor, workers=workers, died=_died):
                # A failed film is tried again anyway, and what was made of it is still to be known.
                remember(new := [row for row in batch if row["status"] in _MADE])
                made.update(row["file"] for row in new)
                rows += batch
                bar.update(len(batch))
        if todo:
            _jpg_sizes(target)
        _remove_outdated(rows, known, target)
        table = as_table(rows)
        write_films(target, table)
    return table.assign(new=table["file"].isin(made))


def _jpg_sizes(target: Path) -> dict[str, int]:
    """Bytes of every JPG in the folder, after what dead runs left half-written has been removed."""
    sizes = {}
    with os.scandir(target) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(UNFINISHED):
                Path(entry.path).unlink(missing_ok=True)
            elif entry.name.endswith(".jpg"):
                sizes[entry.name] = entry.stat().st_size
    return sizes


def _stands(row: Row, film: Source, sizes: dict[str, int], quality: int) -> bool:
    """Whether an earlier run's JPG of this film is what this run would make."""
    return (
        row["status"] in _MADE
        and row["recipe"] == RECIPE
        and row["image_id"] == film.image_id
        and (row["source_bytes"], row["source_time_ns"]) == (film.size, film.time_ns)
        and row["quality"] in (None, quality)
        and row["jpg_bytes"] == sizes.get(f"{film.image_id}.jpg")
    )


def _remove_outdated(rows: list[Row], known: dict[str, Row], target: Path) -> None:
    """Removes the JPGs that earlier runs made of files which now give none."""
    kept = {row["image_id"] for row in rows if row["status"] in _MADE}
    for row in rows:
        before, image_id = known.get(row["file"], row), stem(row["file"].rpartition("/")[2])
        # The table alone does not decide: it may have been edited.
        if before["status"] in _MADE and before["image_id"] == image_id and image_id not in kept:
            with contextlib.suppress(OSError):  # a folder, say, that bears its name
                (target / f"{image_id}.jpg").unlink()


def _convert(films: list[Source], target: Path, quality: int) -> list[Row]:
    """Converts some films one after the other."""
    return [convert_film(film, target, quality) for film in films]


def convert_film(film: Source, target: Path, quality: int = 95) -> Row:
    """Makes the JPG of one film; what goes wrong is in the row that comes back."""
    try:
        data = read_bytes(film.path)
        facts: Row = {"status": "copied", "stored": _PLAIN}
        if found := stored_jpeg(data):
            header, jpg = found
        else:
            picture = film_of(data)
            header, jpg, was = picture.header, picture.jpg, picture.original
            facts["stored"] = f"{was['transfer_syntax']}, {was['bits']} bits, {was['photometric']}"
            facts["reason"] = ", ".join(was["steps"])
            if jpg is None:
                jpg = _encoded(picture, quality)
                facts |= {"status": "encoded", "quality": quality}
                facts["reason"] = facts["reason"] or "pixels as stored"
        write_atomic(target / f"{film.image_id}.jpg", jpg)
    except FilmError as error:
        return row_of(film, "failed", str(error))
    except OSError as error:
        # Without the paths that are part of the error's own text.
        why = error.strerror or type(error).__name__
        return row_of(film, "failed", f"cannot be read or written: {why}")
    except MemoryError:
        return row_of(film, "failed", "not enough memory to read it")
    return row_of(film, **facts, **header, jpg_bytes=len(jpg), recipe=RECIPE)


def _died(film: Source) -> Row:
    return row_of(film, "failed", _DIED)


def _encoded(film: Film, quality: int) -> bytes:
    if max(film.pixels.shape) > _LONGEST_SIDE:
        raise FilmError(f"{film.pixels.shape} pixels; a JPG has at most {_LONGEST_SIDE} a side")
    with contextlib.suppress(cv2.error):
        done, jpg = cv2.imencode(".jpg", film.pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if done:
            return jpg.tobytes()
    raise FilmError(f"OpenCV makes no JPG of its {film.pixels.shape} pixels")
