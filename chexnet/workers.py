"""A long list worked off over any executor, though processes die on the way.

Nothing here knows of films: a task takes a list of items and returns as long a list of rows.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, ProcessPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Row = TypeVar("Row")

_BATCH = 32  # items a task: long against the cost of sending it, short against a user's patience
_PATIENCE = 2.0  # seconds; a worker process takes about that long to start and import
_IN_FLIGHT = 1024  # tasks given at once to an executor whose size is not known
# Tasks that an executor may fail before its first success. One item that kills its process takes
# along what else that process held; an executor that can do nothing fails them all.
_FAILURES = 8


def work_off(
    items: list[Item],
    task: Callable[[list[Item]], list[Row]],
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    died: Callable[[Item], Row],
) -> Iterator[list[Row]]:
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
    workers = workers or cores()
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


def cores() -> int:
    """How many cores this process may use; where the system does not say, how many there are."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return found or 1


def _through(
    pool: Executor,
    task: Callable[[list[Item]], list[Row]],
    batches: list[list[Item]],
    in_flight: int,
) -> Generator[list[Row], None, tuple[list[list[Item]], list[list[Item]], Exception | None]]:
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
    task: Callable[[list[Item]], list[Row]], batch: list[Item], died: Callable[[Item], Row]
) -> Iterator[list[Row]]:
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
