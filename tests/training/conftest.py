"""Fixtures of the tests of training."""

import pytest

from tests.training.test_loop import make_study
from tests.training.test_resume import interrupt


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """What `make_study` makes, once."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def interrupted(monkeypatch):
    """Interrupts training at one batch of one epoch, once."""
    return lambda epoch, batch: interrupt(monkeypatch, epoch, batch)
