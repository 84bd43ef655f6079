"""Fixtures shared by the tests: the real films, where they are at hand."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rsna_dir() -> Path:
    """The folder of genuine RSNA films; tests that need it are skipped where it is not set."""
    folder = os.environ.get("CHEXNET_RSNA_DIR")
    if not folder:
        pytest.skip("CHEXNET_RSNA_DIR is not set: no genuine films to test on")
    return Path(folder)
