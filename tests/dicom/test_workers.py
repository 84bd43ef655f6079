"""Tests of working off a list while processes die."""

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

from chexnet.dicom import convert as workers
from chexnet.dicom.convert import work_off

ROOT = Path(__file__).parents[2]


def double(numbers):
    return [(number, 2 * number) for number in numbers]


def process_of(numbers):
    return [(number, os.getpid()) for number in numbers]


def thread_of(numbers):
    return [(number, threading.current_thread().name) for number in numbers]


def double_or_die(numbers):
    if 13 in numbers and multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return double(numbers)


def died(number):
    return (number, None)


def worked_off(count, task, **options):
    rows = [
        row for batch in work_off(list(range(count)), task, died=died, **options) for row in batch
    ]
    assert len(rows) == count
    return dict(rows)


@pytest.fixture
def impatient(monkeypatch):
    """Starts processes at once."""
    monkeypatch.setattr(workers, "_PATIENCE", -1.0)


def test_little_work_is_done_in_this_process(monkeypatch):
    monkeypatch.setattr(workers, "_processes", None)
    assert worked_off(50, double) == {number: 2 * number for number in range(50)}
    assert worked_off(0, double) == {}


def test_much_work_is_done_in_processes(impatient):
    processes = worked_off(200, process_of, workers=2)
    assert processes.pop(0) == os.getpid()  # one item tells how long the others will take
    assert os.getpid() not in processes.values()


def test_any_executor_will_do():
    with ThreadPoolExecutor(3) as threads:
        names = worked_off(100, thread_of, executor=threads)
    assert all(name.startswith("ThreadPoolExecutor") for name in names.values())


def test_an_item_that_kills_its_process_is_found_and_the_rest_is_done(impatient):
    found = worked_off(64, double_or_die, workers=2)
    assert found == {number: 2 * number for number in range(64)} | {13: None}


def test_an_executor_that_breaks_down_is_replaced():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(BrokenExecutor):
            pool.submit(os._exit, 1).result()
        with pytest.warns(RuntimeWarning, match=r"20 of 20 tasks \(BrokenProcessPool: .*own proc"):
            assert worked_off(20, double, executor=pool, workers=1) == {n: 2 * n for n in range(20)}


class Failing(Executor):
    """Fails the tasks that hold certain items, as a cluster does, and counts what it is given."""

    def __init__(self, bad):
        self.bad, self.given = bad, 0

    def submit(self, task, items):
        future = Future()
        self.given += 1
        if self.bad & set(items):
            future.set_exception(ModuleNotFoundError("No module named 'chexnet'"))
        else:
            future.set_result(task(items))
        return future


@pytest.mark.parametrize("count", [5, 640])
def test_an_executor_that_fails_every_task_is_replaced_by_processes(count, monkeypatch):
    monkeypatch.setattr(workers, "_apart", None)  # a process for each batch would take minutes
    says = r"did not do (5 of 5|20 of 20) tasks \(ModuleNotFoundError: No module named 'chexnet'\)"
    executor = Failing(set(range(count)))
    with pytest.warns(RuntimeWarning, match=says):
        found = worked_off(count, double, executor=executor, workers=2)
    assert found == {number: 2 * number for number in range(count)}


def test_an_executor_that_fails_from_the_first_on_is_not_given_everything(monkeypatch):
    monkeypatch.setattr(workers, "_IN_FLIGHT", 4)
    executor = Failing(set(range(640)))
    with pytest.warns(RuntimeWarning, match="640 of 640|20 of 20"):
        assert len(worked_off(640, double, executor=executor, workers=1)) == 640
    assert executor.given < 20


def test_what_waits_in_an_executor_that_fails_is_taken_back(monkeypatch):
    class Stuck(Failing):
        """Fails eight tasks and never begins the others."""

        def submit(self, task, items):
            return super().submit(task, items) if self.given < 8 else Future()

    executor = Stuck(set(range(640)))
    with pytest.warns(RuntimeWarning, match="20 of 20 tasks"):
        assert len(worked_off(640, double, executor=executor, workers=1)) == 640


def test_an_executor_that_fails_one_task_does_all_the_others(monkeypatch):
    monkeypatch.setattr(workers, "_IN_FLIGHT", 4)
    executor = Failing({0})
    with pytest.warns(RuntimeWarning, match="did not do 1 of 20 tasks"):
        found = worked_off(640, double, executor=executor, workers=1)
    assert found == {number: 2 * number for number in range(640)}
    assert executor.given == 20


def test_an_item_that_kills_the_process_of_an_executor_is_found_and_the_rest_is_done():
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as pool,
        pytest.warns(RuntimeWarning, match="BrokenProcessPool"),
    ):
        found = worked_off(64, double_or_die, executor=pool, workers=2)
    assert found == {number: 2 * number for number in range(64)} | {13: None}


def test_where_no_process_can_be_started_the_work_goes_on_in_this_one(impatient, monkeypatch):
    def broken(count):
        raise BrokenExecutor

    monkeypatch.setattr(workers, "_processes", broken)
    with pytest.warns(RuntimeWarning, match="no worker process"):
        assert worked_off(40, double, workers=2) == {number: 2 * number for number in range(40)}


BEATING = """
import sys, time
from pathlib import Path
from chexnet.dicom import convert as workers

def beat(paths):
    while True:
        Path(paths[0]).write_text(str(time.time()))
        time.sleep(0.02)

if __name__ == "__main__":
    with workers._processes(1) as pool:
        pool.submit(beat, sys.argv[1:]).result()
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
        last = heart.read_text()
        time.sleep(0.2)
        if heart.read_text() == last != "":
            return
    raise AssertionError("a worker outlives its parent")
