"""Tests of the files that every room reads and writes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chexnet.files import locked

ROOT = Path(__file__).parents[1]
HOLDING = """
import sys
from pathlib import Path
from chexnet.files import locked
with locked(Path(sys.argv[1]), "taken"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_lock_keeps_out_other_threads_and_other_calls(tmp_path):
    path, errors = tmp_path / "lock", []

    def take():
        try:
            with locked(path, "taken"):
                errors.append(None)
        except BlockingIOError as error:
            errors.append(str(error))

    with locked(path, "first"):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        take()
    take()
    assert errors == ["taken", "taken", None]


def test_a_lock_ends_with_its_process_even_if_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "lock"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError, match="in use"), locked(tmp_path / "lock", "in use"):
            pass
        other.kill()
    with locked(tmp_path / "lock", "in use"):
        pass


def test_an_error_inside_the_block_surfaces_and_ends_the_lock(tmp_path):
    with pytest.raises(TimeoutError, match="mine"), locked(tmp_path / "lock", "taken"):
        raise TimeoutError("mine")
    with locked(tmp_path / "lock", "taken"):
        pass


def test_a_lock_that_cannot_be_had_for_another_reason_says_so(tmp_path, monkeypatch):
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError), locked(tmp_path / "lock", "taken"):
        pass
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path / "other", "taken"):
        pass
