"""Fixtures shared by the tests: the real films, where they are at hand."""

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def rsna_dir() -> Path:
    """The folder of genuine RSNA films; tests that need it are skipped where it is not set."""
    folder = os.environ.get("CHEXNET_RSNA_DIR")
    if not folder:
        pytest.skip("CHEXNET_RSNA_DIR is not set: no genuine films to test on")
    return Path(folder)


@pytest.fixture(scope="module")
def small():
    """The network at 64 pixels with seeded random weights."""
    # Imported here: most tests need no Keras, and it takes seconds.
    import keras

    from chexnet.model import build_chexnet

    keras.utils.set_random_seed(0)
    return build_chexnet(64, weights=None)


@pytest.fixture(scope="module")
def films():
    """Three films of noise for it."""
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1), dtype=np.uint8)
