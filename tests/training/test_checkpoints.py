"""Checkpoints on disk, and what must be the same to go on from one; nothing is trained here."""

import json

import keras
import numpy as np
import pytest

from chexnet.runs import Run
from chexnet.training import resume
from chexnet.training.resume import (
    Checkpoint,
    checkpoint_files,
    checkpoint_to_resume,
    data_settings,
    has_ended,
    newest_checkpoint,
    optimizer_settings,
    read_checkpoint,
    write_checkpoint,
)
from tests.training.test_loop import sequences, tiny_network


def state_of(epoch, **settings):
    """A checkpoint with twelve arrays, more than have one digit."""
    network = [np.full(2, number, np.float32) for number in range(12)]
    rows = [{"epoch": number + 1, "loss": np.float32(0.5), "saved": 1} for number in range(epoch)]
    return Checkpoint(epoch, "all", rows, settings, True, network, [np.array(3), np.ones(2)])


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    state = state_of(7, seed=1)
    path = write_checkpoint(tmp_path / "new" / "checkpoints", state)
    assert path == tmp_path / "new" / "checkpoints" / "epoch-0007.npz"
    found = read_checkpoint(path)
    for name in ("epoch", "phase", "history", "settings", "stopped"):
        assert getattr(found, name) == getattr(state, name)
    for mine, theirs in ((found.network, state.network), (found.optimizer, state.optimizer)):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_the_newest_two_are_kept(tmp_path):
    for epoch in (8, 9, 10, 11):
        write_checkpoint(tmp_path, state_of(epoch))
    assert [path.name for path in checkpoint_files(tmp_path)] == [
        "epoch-0011.npz",
        "epoch-0010.npz",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0010.npz", "epoch-0011.npz"]


def test_any_damage(tmp_path):
    """Cut at any length or with a bit turned, a checkpoint is refused by name."""
    path = write_checkpoint(tmp_path, state_of(1))
    whole = path.read_bytes()
    for length in [0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1]:
        assert_damaged(path, whole[:length])
    assert_damaged(path, whole + b"\0")
    for bit in range(0, 8 * len(whole), 101):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        assert_damaged(path, content)
    path.write_bytes(whole)
    assert read_checkpoint(path).epoch == 1


def assert_damaged(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"epoch-0001\.npz: damaged checkpoint"):
        read_checkpoint(path)


def test_objects_are_not_unpickled(tmp_path):
    state = state_of(1)
    object.__setattr__(state, "network", [np.array({"an": "object"}, dtype=object)])
    path = write_checkpoint(tmp_path, state)
    with pytest.raises(ValueError, match=r"epoch-0001\.npz: damaged checkpoint .*allow_pickle"):
        read_checkpoint(path)


def test_the_newest_whole_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None
    older = write_checkpoint(tmp_path, state_of(4))
    newer = write_checkpoint(tmp_path, state_of(5))
    assert newest_checkpoint(tmp_path).epoch == 5
    assert newest_checkpoint(tmp_path, up_to=5).epoch == 5
    assert newest_checkpoint(tmp_path, up_to=4).epoch == 4
    assert newest_checkpoint(tmp_path, up_to=3) is None
    newer.write_bytes(b"half")
    warning = r"epoch-0005\.npz: damaged checkpoint .*; the one before it is used"
    with pytest.warns(UserWarning, match=warning):
        assert newest_checkpoint(tmp_path).epoch == 4
    older.unlink()
    with pytest.warns(UserWarning, match=warning):
        assert newest_checkpoint(tmp_path) is None


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.json").write_text('{"settings": {}}')
    return Run(tmp_path)


def test_going_on_needs_the_same_settings(run):
    settings = {"epochs": 3, "seed": 1}
    assert checkpoint_to_resume(run, settings) is None
    write_checkpoint(run.folder / "checkpoints", state_of(1, **settings, other=5))
    assert checkpoint_to_resume(run, settings).epoch == 1
    with pytest.raises(ValueError, match=r"another \['seed'\], such as seed = 1 and not 2;"):
        checkpoint_to_resume(run, settings | {"seed": 2})
    with pytest.raises(ValueError, match=r"another \['new'\], such as new = None and not 2;"):
        checkpoint_to_resume(run, settings | {"new": 2})


@pytest.mark.parametrize(("others", "epoch"), [([5, 5], 5), ([5, 4], 4), ([3, 5], None)])
def test_processes_go_on_from_the_same_epoch(run, monkeypatch, others, epoch):
    """One that was killed later than the others goes back to what they have."""
    asked = []

    def gather(number):
        asked.append(number)
        return [number, *others] if len(asked) == 1 else [number]

    monkeypatch.setattr(resume, "all_gather", gather)
    for number in (4, 5):
        write_checkpoint(run.folder / "checkpoints", state_of(number))
    state = checkpoint_to_resume(run, {})
    assert (state and state.epoch) == epoch
    assert asked == ([5] if epoch == 5 else [5, epoch or 0])


def test_a_process_without_a_checkpoint_counts_as_0(run, monkeypatch):
    asked = []
    monkeypatch.setattr(resume, "all_gather", lambda number: [asked.append(number), 0][1:])
    assert checkpoint_to_resume(run, {}) is None
    assert asked == [0]


def test_a_training_has_ended_when_its_checkpoints_are_gone(run, monkeypatch):
    assert has_ended(run, {"seed": 1}) is False
    (run.folder / "training.json").write_text(json.dumps({"settings": {"seed": 1}}))
    assert has_ended(run, {"seed": 1}) is True
    with pytest.raises(ValueError, match=r"another \['seed'\]"):
        has_ended(run, {"seed": 2})
    monkeypatch.setattr(resume, "all_gather", lambda ended: [ended, False])
    with pytest.raises(ValueError, match="ended in some processes and was killed in others"):
        has_ended(run, {"seed": 1})
    write_checkpoint(run.folder / "checkpoints", state_of(1))
    assert has_ended(run, {"seed": 1}) is False


def test_names_and_phase_are_not_settings(study):
    """Names count up with each network that is built; the first phase freezes layers."""
    batches, val = sequences(study)
    first = data_settings(tiny_network(), batches, val)
    network = tiny_network()
    network.layers[2].trainable = False
    assert data_settings(network, batches, val) == first
    assert (first["batch_size"], first["seed"], first["image_size"]) == (16, 0, 32)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("what", ["image_ids", "labels", "class_names"])
def test_films_of_both_splits_are_settings(study, part, what):
    both = sequences(study)
    first = data_settings(tiny_network(), *both)
    changed = {
        "image_ids": both[part].image_ids[::-1], "labels": 1 - both[part].labels,
        "class_names": ["Other"],
    }  # fmt: skip
    setattr(both[part], what, changed[what])
    other = data_settings(tiny_network(), *both)
    assert other["films"] != first["films"]


@pytest.mark.parametrize("part", [0, 1])
def test_pixels_of_both_splits_are_settings(study, part):
    both = sequences(study)
    first = data_settings(tiny_network(), *both)
    store = both[part].store
    both[part].store = Store(store)
    other = data_settings(tiny_network(), *both)
    assert [name for name in first if first[name] != other[name]] == ["pixels"]


class Store:
    """A store whose fingerprint differs."""

    def __init__(self, store):
        self.store, self.image_size = store, store.image_size

    def __getitem__(self, ids):
        return self.store[ids]

    def fingerprint(self, ids):
        return "other"


def test_optimizer_settings():
    found = optimizer_settings(keras.optimizers.SGD(0.25, name="counted_up"))
    assert (found["class_name"], found["learning_rate"]) == ("SGD", 0.25)
    assert "name" not in found
    scaled = optimizer_settings(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25), name="counted_up")
    )
    assert scaled["class_name"] == "LossScaleOptimizer"
    assert scaled["inner_optimizer"] == found
