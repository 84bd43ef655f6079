"""Runs a module of the tests in a process of its own, on the backend and devices it is told."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def need(library: str, remedy: str = "make test-backends") -> None:
    """Skips the test, and says why, where a library is not installed."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: {remedy}")


def run_without_keras(program: str) -> None:
    """Runs a program, and fails where it has loaded Keras, a backend or pyplot in the end."""
    program += (
        "; import sys; "
        "bad = {'keras', 'tensorflow', 'jax', 'torch', 'matplotlib.pyplot'} & set(sys.modules); "
        "sys.exit(f'loaded: {bad}' if bad else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def start(module: str, *arguments: object, **settings: str) -> subprocess.Popen:
    """Starts ``python -m module arguments`` with environment variables."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path])[1:]} | settings
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen) -> None:
    """Waits for all of them; fails with what the first that failed has said."""
    try:
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
