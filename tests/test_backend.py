"""Keras loads without TensorFlow's start-up messages, and nothing else is hidden."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stderr_of(program: str) -> str:
    """The error stream of a fresh process that runs a program."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stderr


def test_quiet_error_stream():
    """Nothing is written to the error stream until training ends."""
    program = """
from chexnet.backend import keras
import numpy as np

class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.ones((4, 3)), np.ones((4, 2))

model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
model.compile("sgd", "mse")
model.fit(Batches(workers=2), verbose=0)
"""
    assert stderr_of(program) == ""


def test_other_messages_are_passed_on_also_when_loading_fails():
    program = (
        "import os; from chexnet.backend import without_startup_messages\n"
        "try:\n"
        "    with without_startup_messages():\n"
        "        os.write(2, b'E0000 failed call to cuInit: UNKNOWN ERROR (303)\\n')\n"
        "        os.write(2, b'E0000 failed call to cuInit: NO DEVICE (100)\\n')\n"
        "        raise ImportError\n"
        "except ImportError:\n"
        "    os.write(2, b'after\\n')"
    )
    assert stderr_of(program) == "E0000 failed call to cuInit: NO DEVICE (100)\nafter\n"
