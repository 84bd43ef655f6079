"""Converts a folder of films to 8-bit JPGs, in any executor; a process may die without harm.

A film whose file already holds the right JPG is copied out of it; others are decoded
and encoded (``film.py``). Of a header only view, sex, age and size reach a JPG, the table
(``table.py``) or a message.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import cv2
import pandas as pd
from tqdm.auto import tqdm

from chexnet.dicom.film import Film, film_of, stored_jpeg
from chexnet.dicom.header import FilmError, read_bytes
from chexnet.dicom.table import (
    LOCK,
    Row,
    Source,
    as_table,
    find_files,
    known_rows,
    may_have_id,
    row_of,
    write_films,
)
from chexnet.files import check_number, locked, remove_unfinished, write_atomic

VERSION = 2  # raised when the same film gives another JPG, so that old ones are made again
_PLAIN = "JPEG Baseline (Process 1), 8 bits, MONOCHROME2"
_MADE = ("copied", "encoded")
_QUALITY = 95  # of an encoded JPG; OpenCV's default
_DIED = "the process that read it died (out of memory, or a decoder crashed)"
_SAVE_EVERY = 5.0  # seconds; writing a table of 100,000 films takes half a second
_PATIENCE = 2.0  # seconds; a worker process takes about that long to start and import
_BATCH = 32  # films a task: long compared with the cost of sending it

Task = Callable[[list[Source]], list[Row]]


def convert_folder(
    source: str | Path,
    target: str | Path,
    *,
    ids: str = "name",
    executor: Executor | None = None,
    workers: int | None = None,
    quality: int = _QUALITY,
    progress: bool = True,
) -> pd.DataFrame:
    """Makes a JPG of every film below a folder, and a table with one row for each file.

    Writes ``target/<image_id>.jpg`` and ``target/films.csv``, the table. If a run was stopped in
    any way, the next one continues it. Films that are converted and unchanged are skipped; failed
    ones are tried again. The JPG of a film that now fails or has another id is removed. If a film
    is gone from ``source``, its row is removed but its JPG stays: a wrong or unmounted folder must
    not delete results.

    Args:
        source: folder of DICOM, PNG or JPG files; subfolders are searched, links out of it are not
            followed.
        target: folder for the JPGs, made if missing; may be inside ``source``.
        ids: what ``image_id`` is. "name": the file's name without suffix, where that is a valid id
            and no other film has it, upper and lower case being the same; else as "path".
            "path": `chexnet.files.path_id` of the file's path below ``source``, with a hash where
            two films would get the same. "uid": the film's SOP Instance UID; a film without one,
            and films with the same, fail. `image_ids` lists them.
        executor: where to convert, such as ``Client(...).get_executor()`` of a Dask cluster that
            sees both folders. By default this process, and more processes if it would take long.
        workers: number of those processes, by default one a core; 1 stays in this process.
        quality: of an encoded JPG, 1 to 100. Copied ones are as the file has them.
        progress: whether to show a bar.

    Returns:
        One row a file, sorted by ``file`` (its path below ``source``): ``image_id``; ``status``
        "copied" (the JPG was in the file, its pixels are unchanged), "encoded" or "failed";
        ``reason``, for "encoded" what was done to the pixels, for "failed" why; ``rows``,
        ``columns`` in pixels; ``view``, ``sex``, ``age`` in years, missing if not known;
        ``stored``, how the file stored it; book-keeping (``quality``, ``jpg_bytes``,
        ``source_bytes``, ``source_time_ns``, ``version``); and, not in ``films.csv``, ``new``:
        whether this run made it.

    Raises:
        NotADirectoryError: ``source`` is not a folder.
        FileNotFoundError: ``source`` holds no files.
        ValueError: ``target`` is ``source``, ``ids``, ``quality`` or ``workers`` is invalid, or
            ``target`` holds a ``films.csv`` of somebody else.
        BlockingIOError: another process is converting into ``target``.

    Warns:
        RuntimeWarning: ``films.csv`` is damaged, no process can be started, or tasks of the
            executor failed and their films were converted without it.

    Example:
        >>> from chexnet.dicom import convert_folder
        >>> source, target = "data/phantom/study/stage_2_train_images", "data/phantom/jpg"
        >>> films = convert_folder(source, target, progress=False)
        >>> films[["status", "rows", "columns"]].value_counts().to_dict()
        {('copied', 256, 256): 40}
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    if not source.is_dir():
        raise NotADirectoryError(f"{source}: not a folder")
    if source == target:
        raise ValueError(f"{target}: expected a folder for the JPGs other than that of the films")
    check_number("quality", quality, integer=True, least=1, most=100)
    workers = cv2.getNumberOfCPUs() if workers is None else workers
    check_number("workers", workers, integer=True, least=1)
    films, rows = find_files(source, target, ids)
    if not films and not rows:
        raise FileNotFoundError(f"{source}: holds no files")
    target.mkdir(parents=True, exist_ok=True)
    message = f"{target}: another process is converting into this folder"
    with locked(target / LOCK, message):
        known = known_rows(target)
        remove_unfinished(target)
        sizes = {e.name: e.stat().st_size for e in os.scandir(target) if e.name.endswith(".jpg")}
        done = {f.file for f in films if _is_done(known.get(f.file), f, sizes, quality)}
        _remove_renamed(films, done, known, target)
        rows += [known[file] for file in done]
        todo = [film for film in films if film.file not in done]
        batches = map_films(todo, partial(_convert, target, quality), executor, workers)
        bar = tqdm(total=len(todo), unit="film", disable=not (progress and todo))
        saved = time.monotonic()
        try:
            with contextlib.closing(batches), bar:
                for batch in batches:
                    rows += batch
                    bar.update(len(batch))
                    # A failed film keeps its earlier row until its outdated JPG is removed.
                    known |= {row["file"]: row for row in batch if row["status"] in _MADE}
                    if time.monotonic() - saved > _SAVE_EVERY:
                        write_films(target, as_table(known.values()))
                        saved = time.monotonic()
        except BaseException:
            write_films(target, as_table(known.values()))
            raise
        rows = [_still_there(row, target) for row in rows]
        remove_unfinished(target)  # of workers that died
        _remove_outdated(rows, known, target)
        table = as_table(rows)
        write_films(target, table)
    return table.assign(new=table["status"].isin(_MADE) & ~table["file"].isin(done))


def _is_done(row: Row | None, film: Source, sizes: dict[str, int], quality: int) -> bool:
    """Whether the JPG that an earlier run made of this film is what this run would make."""
    return (
        row is not None
        and row["status"] in _MADE
        and row["version"] == VERSION
        and row["image_id"] == film.image_id
        and (row["source_bytes"], row["source_time_ns"]) == (film.size, film.time_ns)
        and row["quality"] in (None, quality)
        and row["jpg_bytes"] == sizes.get(f"{film.image_id}.jpg")
    )


def _still_there(row: Row, target: Path) -> Row:
    """The row, or a failed one if somebody has removed its JPG while others were converted."""
    if row["status"] not in _MADE or (target / f"{row['image_id']}.jpg").is_file():
        return row
    source = Source(row["file"], "", row["image_id"], row["source_bytes"], row["source_time_ns"])
    return row_of(source, "failed", "its JPG was removed while other films were converted")


def _remove_renamed(
    films: list[Source], done: set[str], known: dict[str, Row], target: Path
) -> None:
    """Removes JPGs of files that now have another id, before another film may get the old one."""
    kept = {film.image_id.casefold() for film in films if film.file in done}
    for film in films:
        before = known.get(film.file)
        if before and before["image_id"] != film.image_id and before["status"] in _MADE:
            _remove_jpg(before, kept, target)


def _remove_outdated(rows: list[Row], known: dict[str, Row], target: Path) -> None:
    """Removes the JPGs that earlier runs made of files which now give none."""
    made = {row["image_id"].casefold() for row in rows if row["status"] in _MADE}
    for row in rows:
        before = known.get(row["file"], row)
        if row["status"] not in _MADE and before["status"] in _MADE:
            _remove_jpg(before, made, target)


def _remove_jpg(row: Row, kept: set[str], target: Path) -> None:
    """Removes the JPG of a row, unless its id is among those to keep.

    The table may have been edited, so the id must be one that the file can have.
    """
    if row["image_id"].casefold() not in kept and may_have_id(row["file"], row["image_id"]):
        with contextlib.suppress(OSError):  # such as a folder of that name
            (target / f"{row['image_id']}.jpg").unlink()


def map_films(
    films: list[Source], task: Task, executor: Executor | None, workers: int
) -> Generator[list[Row], None, None]:
    """Yields the rows of all films, some at a time, in the order in which they are done.

    Args:
        films: what to convert.
        task: converts some of them and returns as many rows; it can be pickled.
        executor: where to do that; by default this process, then ``workers`` new ones.
        workers: number of those processes.
    """
    done, began = 0, time.monotonic()
    while executor is None and done < len(films):
        # Copying a few hundred films takes less time than starting a process.
        yield task(films[done : done + 1])
        done += 1
        spent = time.monotonic() - began
        if workers > 1 and spent > _PATIENCE and spent / done * (len(films) - done) > _PATIENCE:
            break
    films = films[done:]
    size = max(1, min(_BATCH, len(films) // 16))
    batches = [films[start : start + size] for start in range(0, len(films), size)]
    if executor is not None:
        batches = yield from _in_executor(batches, task, executor)
    if batches:
        yield from _in_processes(batches, task, workers)


def _in_executor(
    batches: list[list[Source]], task: Task, executor: Executor
) -> Generator[list[Row], None, list[list[Source]]]:
    """Converts films in an executor; returns the batches that it failed to do, with a warning."""
    futures: dict[Future[list[Row]], list[Source]] = {}
    error: Exception | None = None
    try:
        try:
            for batch in batches:
                futures[executor.submit(task, batch)] = batch
        except RuntimeError as broken:  # BrokenExecutor is one; also if it was shut down
            error = broken
        failed = batches[len(futures) :]
        for future in as_completed(futures):
            try:
                yield future.result()
            except Exception as lost:  # its process or cluster died; a bug shows again later
                error = lost
                failed.append(futures[future])
    finally:
        for future in futures:
            future.cancel()
    if failed:
        warnings.warn(
            f"the executor failed {len(failed)} of {len(batches)} tasks ({type(error).__name__}: "
            f"{error}); continuing with processes of this machine",
            RuntimeWarning,
            stacklevel=4,
        )
    return failed


def _in_processes(batches: list[list[Source]], task: Task, workers: int) -> Iterator[list[Row]]:
    """Converts films in new processes; a film that ends its process is a failed row."""
    started = [_process() for _ in range(workers)]
    try:
        started[0].submit(os.getpid).result()
    except BrokenExecutor:
        warnings.warn(
            "no worker process can be started, as in a script without `if __name__ == "
            "'__main__':`; continuing in this process",
            RuntimeWarning,
            stacklevel=4,
        )
        yield from map(task, batches)
        return
    # Pools of one process each: one that breaks shows which batch has ended its process.
    pools: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
    for pool in started:
        pools.put(pool)

    def run(batch: list[Source]) -> list[Row]:
        pool = pools.get()
        try:
            return pool.submit(task, batch).result()
        except BrokenExecutor:
            pool = _process()
            if len(batch) == 1:
                return [row_of(batch[0], "failed", _DIED)]
        finally:
            pools.put(pool)
        return [row for film in batch for row in run([film])]

    threads = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([threads.submit(run, batch) for batch in batches]):
            yield future.result()
    finally:
        threads.shutdown(cancel_futures=True)
        while not pools.empty():
            pools.get().shutdown()


def _process() -> ProcessPoolExecutor:
    """A pool of one process; spawned, since TensorFlow does not survive a fork."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _convert(target: Path, quality: int, films: list[Source]) -> list[Row]:
    """Converts some films one after the other."""
    return [convert_film(film, target, quality) for film in films]


def film_to_jpg(path: str | Path) -> tuple[bytes, Row]:
    """Makes the JPG of one film, the same bytes that ``convert_folder`` writes by default.

    Args:
        path: the film's file.

    Returns:
        The content of the JPG, and the film's facts: ``status`` ("copied" or "encoded"),
        ``reason``, ``rows``, ``columns``, ``view``, ``sex``, ``age``, ``stored``, ``quality``, as
        in the table of ``convert_folder``.

    Raises:
        FilmError: not a film, or not one that can be shown; the message names file and reason.
        OSError: the file cannot be opened.

    Example:
        >>> from pathlib import Path
        >>> from chexnet.dicom import film_to_jpg
        >>> film = min(Path("data/phantom/study/stage_2_train_images").iterdir())
        >>> jpg, facts = film_to_jpg(film)
        >>> facts["status"], facts["rows"], facts["columns"]
        ('copied', 256, 256)
        >>> jpg == Path(f"data/phantom/jpg/{film.stem}.jpg").read_bytes()
        True
    """
    try:
        return _jpg_of(read_bytes(path), _QUALITY)
    except FilmError as error:
        raise FilmError(f"{path}: {error}") from None


def convert_film(film: Source, target: Path, quality: int = _QUALITY) -> Row:
    """Writes the JPG of one film; an error is in the row that is returned."""
    try:
        jpg, facts = _jpg_of(read_bytes(film.path), quality)
        write_atomic(target / f"{film.image_id}.jpg", jpg)
    except FilmError as error:
        return row_of(film, "failed", str(error))
    except OSError as error:
        # Not its own text, which has the whole path.
        why = error.strerror or type(error).__name__
        return row_of(film, "failed", f"cannot be read or written: {why}")
    except MemoryError:
        return row_of(film, "failed", "not enough memory to read it")
    return row_of(film, **facts, jpg_bytes=len(jpg), version=VERSION)


def _jpg_of(data: bytes, quality: int) -> tuple[bytes, Row]:
    """The JPG of a film and its facts, from the content of its file."""
    facts: Row = {"status": "copied", "reason": "", "stored": _PLAIN, "quality": None}
    if found := stored_jpeg(data):
        header, jpg = found
        return jpg, facts | header
    film = film_of(data)
    was: Row = film.original
    steps = ", ".join(was["steps"]) or ("" if film.jpg else "pixels as stored")
    remarks = [f"remark: {words}" for words in film.remarks]
    facts["stored"] = f"{was['transfer_syntax']}, {was['bits']} bits, {was['photometric']}"
    facts["reason"] = "; ".join([steps, *remarks] if steps else remarks)
    if film.jpg:
        return film.jpg, facts | film.header
    facts |= {"status": "encoded", "quality": quality}
    return _encoded(film, quality), facts | film.header


def _encoded(film: Film, quality: int) -> bytes:
    with contextlib.suppress(cv2.error):
        done, jpg = cv2.imencode(".jpg", film.pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if done:
            return jpg.tobytes()
    # libjpeg's JPEG_MAX_DIMENSION
    raise FilmError(
        f"OpenCV makes no JPG of its {film.pixels.shape} pixels (65,500 a side at most)"
    )
