"""Tests of converting many films although executors fail and processes die."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path

import pytest

from chexnet.dicom import convert as converting
from chexnet.dicom.convert import map_films
from chexnet.dicom.table import Source, row_of

ROOT = Path(__file__).parents[2]


def is_worker():
    return multiprocessing.parent_process() is not None


def copy(films):
    return [row_of(film, "copied") for film in films]


def name_process(films):
    return [row_of(film, str(os.getpid())) for film in films]


def name_thread(films):
    return [row_of(film, threading.current_thread().name) for film in films]


def copy_or_die(films):
    if is_worker() and {film.image_id for film in films} & {"13", "14", "63"}:
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(films)


def copy_or_fail(films):
    if any(film.image_id == "13" for film in films):
        raise KeyError("a bug of ours")
    return copy(films)


def films(count):
    return [Source(f"{n}.dcm", f"/films/{n}.dcm", str(n), 1, 1) for n in range(count)]


def status(count, task, executor=None, workers=2):
    """The status of each film by its number; each has exactly one row."""
    rows = [row for batch in map_films(films(count), task, executor, workers) for row in batch]
    assert sorted(int(row["image_id"]) for row in rows) == list(range(count))
    return {int(row["image_id"]): row["status"] for row in rows}


def copied(count):
    return dict.fromkeys(range(count), "copied")


@pytest.fixture
def impatient(monkeypatch):
    """Starts processes at once."""
    monkeypatch.setattr(converting, "_PATIENCE", -1.0)


def processes():
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def test_few_films_are_converted_in_this_process(monkeypatch):
    monkeypatch.setattr(converting, "_process", None)
    assert status(50, copy) == copied(50)
    assert status(0, copy) == {}


def test_many_films_are_converted_in_processes(impatient):
    found = status(200, name_process, workers=2)
    assert found.pop(0) == str(os.getpid())  # one film shows how long the others will take
    assert str(os.getpid()) not in found.values()


def test_any_executor_will_do():
    with ThreadPoolExecutor(3) as threads:
        found = status(100, name_thread, threads)
    assert all(name.startswith("ThreadPoolExecutor") for name in found.values())


def test_a_film_that_kills_its_process_is_one_failed_row(impatient):
    expected = copied(80) | dict.fromkeys([13, 14, 63], "failed")
    assert status(80, copy_or_die, workers=2) == expected


def test_film_that_kills_its_process():
    """A film that kills the process of an executor is one failed row."""
    expected = copied(80) | dict.fromkeys([13, 14, 63], "failed")
    with processes() as pool, pytest.warns(RuntimeWarning, match="BrokenProcessPool"):
        assert status(80, copy_or_die, pool, workers=2) == expected


def test_the_row_of_a_film_that_killed_its_process_says_so(impatient):
    rows = [row for batch in map_films(films(15), copy_or_die, None, 2) for row in batch]
    (reason,) = {row["reason"] for row in rows if row["status"] == "failed"}
    assert reason == "the process that read it died (out of memory, or a decoder crashed)"


@pytest.mark.parametrize("kind", ["in processes", "in threads"])
def test_an_error_of_our_own_is_raised_and_is_no_failed_row(impatient, kind):
    if kind == "in processes":
        with pytest.raises(KeyError, match="a bug of ours"):
            status(64, copy_or_fail, workers=2)
        return
    with (
        ThreadPoolExecutor(2) as threads,
        pytest.warns(RuntimeWarning, match="KeyError"),
        pytest.raises(KeyError, match="a bug of ours"),
    ):
        status(64, copy_or_fail, threads, workers=2)


class Failing(Executor):
    """Fails the tasks that hold certain films, as a cluster does."""

    def __init__(self, bad):
        self.bad = {str(number) for number in bad}

    def submit(self, task, films):
        future = Future()
        if self.bad & {film.image_id for film in films}:
            future.set_exception(ModuleNotFoundError("No module named 'chexnet'"))
        else:
            future.set_result(task(films))
        return future


@pytest.mark.parametrize(("bad", "tasks"), [(range(640), 20), ([0], 1)])
def test_what_an_executor_fails_to_do_is_done_without_it(bad, tasks):
    says = rf"failed {tasks} of 20 tasks \(ModuleNotFoundError: No module named 'chexnet'\); cont"
    with pytest.warns(RuntimeWarning, match=says):
        found = status(640, name_process, Failing(bad), workers=2)
    assert len(set(found.values()) - {str(os.getpid())}) in (1, 2)
    assert list(found.values()).count(str(os.getpid())) == 640 - 32 * tasks


def test_an_executor_that_is_broken_is_replaced():
    with processes() as pool:
        with pytest.raises(BrokenExecutor):
            pool.submit(os._exit, 1).result()
        with pytest.warns(RuntimeWarning, match="20 of 20 tasks .BrokenProcessPool"):
            assert status(20, copy, pool, workers=1) == copied(20)


def test_an_executor_that_was_shut_down_is_replaced():
    with ThreadPoolExecutor(1) as threads:
        pass
    with pytest.warns(RuntimeWarning, match="20 of 20 tasks .RuntimeError: .*shutdown"):
        assert status(20, copy, threads, workers=1) == copied(20)


def test_tasks_are_cancelled():
    """Tasks that have not begun are cancelled when the caller stops."""

    class Slow(Executor):
        """Does the first task only."""

        def __init__(self):
            self.given = []

        def submit(self, task, films):
            self.given.append(Future())
            if len(self.given) == 1:
                self.given[0].set_result(task(films))
            return self.given[-1]

    executor = Slow()
    batches = map_films(films(20), copy, executor, 1)
    next(batches)
    batches.close()
    assert [future.cancelled() for future in executor.given] == [False] + [True] * 19


UNGUARDED = """
import sys
from chexnet.dicom import convert, convert_folder

convert._PATIENCE = -1.0
convert_folder(*sys.argv[1:], workers=2, progress=False)
"""


def test_script_without_processes(tmp_path):
    """A script in which no process can be started goes on in its own."""
    source, target = tmp_path / "films", tmp_path / "jpg"
    source.mkdir()
    for number in range(5):
        (source / f"{number}.dcm").write_bytes(b"not a film")
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, tmp_path / "unguarded.py", source, target],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RuntimeWarning: no worker process can be started" in done.stderr
    assert (target / "films.csv").read_text().count("not a DICOM, PNG or JPG file") == 5


BEATING = """
import multiprocessing, sys, time
from chexnet.dicom import convert as converting
from chexnet.dicom.table import Source

def beat(films):
    while multiprocessing.parent_process():
        with open(films[0].path, "a") as heart:
            heart.write(".")
        time.sleep(0.02)
    return []

if __name__ == "__main__":
    converting._PATIENCE = -1.0
    list(converting.map_films([Source("", sys.argv[1], "", 0, 0)] * 2, beat, None, 2))
"""


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script, heart = tmp_path / "beating.py", tmp_path / "heart"
    script.write_text(BEATING)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script, heart], env=environment) as parent:
        for _ in range(600):
            time.sleep(0.05)
            if heart.exists():
                break
        parent.kill()
    for _ in range(100):
        beats = heart.stat().st_size
        time.sleep(0.2)
        if heart.stat().st_size == beats:
            return
    raise AssertionError("a worker outlives its parent")
