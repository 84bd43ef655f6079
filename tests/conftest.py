"""Fixtures shared by the tests: the real films, where they are at hand."""

import os
import zipfile
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


@pytest.fixture(scope="session")
def label_tables(tmp_path_factory) -> Path:
    """The label tables of ChestX-ray14 and CheXpert, which the wheel torchxrayvision contains.

    CHEXNET_LABEL_TABLES is the wheel, from `pip download --no-deps torchxrayvision==1.5.7`, or a
    folder with its ``torchxrayvision/data``; tests that need it are skipped where it is not set.
    """
    given = os.environ.get("CHEXNET_LABEL_TABLES")
    if not given:
        pytest.skip("CHEXNET_LABEL_TABLES is not set: no genuine label tables to test on")
    folder = Path(given)
    if folder.is_file():
        folder = tmp_path_factory.mktemp("wheel")
        with zipfile.ZipFile(given) as wheel:
            for name in wheel.namelist():
                if name.endswith(".csv.gz"):
                    (folder / Path(name).name).write_bytes(wheel.read(name))
    elif (folder / "torchxrayvision").is_dir():
        folder = folder / "torchxrayvision" / "data"
    return folder


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
