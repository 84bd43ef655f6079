"""Training that was interrupted ends where an unbroken one ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from chexnet.generator import default_augmenter
from chexnet.model import build_chexnet, load_chexnet, map_size
from chexnet.runs import Run
from chexnet.training import WeightedCrossentropy, callbacks, default_optimizer, train
from chexnet.training.callbacks import EpochLog
from chexnet.training.resume import checkpoint_files
from tests.training.test_loop import SIZE, new_run, sequences, tiny_network

ROOT = Path(__file__).parents[2]


def with_dropout():
    """A tiny network whose training also draws random numbers."""
    network = tiny_network()
    keras.utils.set_random_seed(1)
    pooled = layers.Dropout(0.3, seed=5)(network.get_layer("avg_pool").output)
    head = layers.Dense(1, activation="sigmoid", name="predictions")
    return keras.Model(network.input, head(pooled))


@pytest.fixture
def states(monkeypatch):
    """Every checkpoint that is written, as it was."""
    return states_written(monkeypatch)


def states_written(patch):
    written = []
    really = callbacks.write_checkpoint

    def remember(folder, state):
        written.append(state)
        return really(folder, state)

    patch.setattr(callbacks, "write_checkpoint", remember)
    return written


def interrupt(patch, epoch, batch):
    really = EpochLog.on_train_batch_end
    left = [(epoch, batch)]

    def on_train_batch_end(self, index, logs=None):
        really(self, index, logs)
        if left and (self.epoch, index) == left[0]:
            left.clear()
            raise KeyboardInterrupt

    patch.setattr(EpochLog, "on_train_batch_end", on_train_batch_end)


def trained_in(study, folder, network=with_dropout, augmenter=None, **options):
    """A run of training on boxes."""
    run = new_run(study, folder, resume=options.get("resume", False))
    network = network()
    batches, val = sequences(study, boxes=study[2], map_size=map_size(network), augmenter=augmenter)
    options = {"head_epochs": 2, "epochs": 4, "box_weight": 1.0} | options
    history = train(network, batches, val, run, **options)
    return run, history.drop(columns="seconds")


@pytest.fixture(scope="module")
def unbroken(study, tmp_path_factory):
    """A training without interruption: run, history, last checkpoint, number of checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        written = states_written(patch)
        run, history = trained_in(study, tmp_path_factory.mktemp("unbroken") / "run")
    return run, history, written[-1], len(written)


@pytest.fixture
def ended(unbroken, tmp_path):
    """A copy of its run."""
    shutil.copytree(unbroken[0].folder, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def broken(study, tmp_path_factory):
    """The folder of a training that was interrupted in its fourth epoch."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3, 0)
        trained_in(study, folder)
    return folder


# Each makes new objects: an optimizer and a callback are used once. The first two have both phases.
CHOICES = {
    "cosine": dict,
    "early_stopping": lambda: {  # no epoch is better than the first: three with all layers
        "callbacks": [
            keras.callbacks.EarlyStopping("val_auroc", mode="max", patience=2, min_delta=2)
        ],
    },
    "accumulated_ema": lambda: SHORT | {
        "optimizer": default_optimizer(
            steps_per_epoch=5, epochs=3, gradient_accumulation_steps=3, use_ema=True,
            ema_momentum=0.9,
        ),
    },
    "plateau_schedule": lambda: SHORT | {
        "optimizer": keras.optimizers.AdamW(1e-3),
        "loss": WeightedCrossentropy([2.0]),
        "callbacks": [
            keras.callbacks.ReduceLROnPlateau("val_auroc", mode="max", patience=1, min_delta=2)
        ],
    },
}  # fmt: skip
SHORT = {"head_epochs": 0, "epochs": 3}


@pytest.mark.parametrize(
    ("epoch", "batch", "choice"),
    [
        (1, 0, "cosine"),
        (4, 3, "cosine"),
        (4, 0, "early_stopping"),
        (1, 2, "accumulated_ema"),
        (2, 1, "plateau_schedule"),
    ],
)
def test_interrupted_and_resumed(
    study, tmp_path, unbroken, states, interrupted, epoch, batch, choice
):  # fmt: skip
    """It is the same as unbroken training, to the last weight."""
    if choice == "cosine":
        _, whole, last, epochs = unbroken
    else:
        _, whole = trained_in(study, tmp_path / "whole", **CHOICES[choice]())
        last, epochs = states[-1], len(states)
    interrupted(epoch, batch)
    with pytest.raises(KeyboardInterrupt):
        trained_in(study, tmp_path / "broken", **CHOICES[choice]())
    before = len(states)
    run, history = trained_in(study, tmp_path / "broken", resume=True, **CHOICES[choice]())
    assert len(states) - before == epochs - epoch  # no epoch was done twice
    assert_same(history, whole, states[-1], last)
    assert not (run.folder / "earlier").exists()
    if choice == "early_stopping":
        assert epochs == 5
    if choice == "plateau_schedule":
        assert history["learning_rate"].iloc[-1] < 1e-3 / 5


@pytest.mark.skipif("CI" not in os.environ, reason="4 minutes; runs where CI is set")
def test_densenet_interrupted_and_resumed_is_the_same(study, tmp_path, states, interrupted):
    def densenet():
        keras.utils.set_random_seed(2)
        return build_chexnet(study[3].image_size, weights=None, map_stride=16, dropout=0.2)

    options = {"network": densenet, "head_epochs": 0, "epochs": 2}
    _, whole = trained_in(study, tmp_path / "whole", **options)
    unbroken = states[-1]
    interrupted(1, 1)
    with pytest.raises(KeyboardInterrupt):
        trained_in(study, tmp_path / "broken", **options)
    before = len(states)
    _, history = trained_in(study, tmp_path / "broken", resume=True, **options)
    assert len(states) - before == 1
    assert_same(history, whole, states[-1], unbroken)


def assert_same(history, whole, state, unbroken):
    """The loss curve and every last weight and optimizer state."""
    pd.testing.assert_frame_equal(history, whole, rtol=1e-6, atol=1e-6)
    for one, other in (
        (state.network, unbroken.network),
        (state.optimizer, unbroken.optimizer),
    ):
        assert len(one) == len(other) > 0
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_an_ended_training_is_not_done_again(study, ended, states):
    batches, val = sequences(study, boxes=study[2], map_size=(8, 8))
    network = with_dropout()
    again = train(network, batches, val, ended, head_epochs=2, epochs=4, box_weight=1, resume=True)
    assert states == []
    pd.testing.assert_frame_equal(again, ended.history)
    saved = load_chexnet(ended.folder / "model.keras").get_weights()
    for mine, theirs in zip(network.get_weights(), saved, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_checkpoints_go_when_training_has_ended(study, tmp_path):
    run, _ = trained_in(study, tmp_path / "run", head_epochs=0, epochs=1)
    assert not (run.folder / "checkpoints").exists()
    assert '"ended": "all epochs done"' in (run.folder / "training.json").read_text()


def test_damaged_checkpoint(
    study, tmp_path, unbroken, states, interrupted
):  # fmt: skip
    """Two checkpoints are kept and a damaged one is passed over."""
    _, whole, last, _ = unbroken
    interrupted(4, 1)
    with pytest.raises(KeyboardInterrupt):
        trained_in(study, tmp_path / "broken")
    newest, before = checkpoint_files(tmp_path / "broken" / "checkpoints")
    assert (newest.name, before.name) == ("epoch-0004.npz", "epoch-0003.npz")
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=r"epoch-0004\.npz: damaged checkpoint.*before it"):
        _, history = trained_in(study, tmp_path / "broken", resume=True)
    assert_same(history, whole, states[-1], last)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda: {"learning_rate": 0.1}, r"\['learning_rate'\].*0\.001 and not 0\.1"),
        (lambda: {"augmenter": default_augmenter(SIZE)}, r"\['augmenter'\]"),
        (lambda: {"network": tiny_network}, r"\['network'\]"),
        (
            lambda: {
                "optimizer": keras.optimizers.Adam(1e-4),
                "loss": keras.losses.BinaryCrossentropy(label_smoothing=0.1),
            },
            r"\['optimizer', 'loss'\]",
        ),
    ],
    ids=["setting", "augmenter", "network", "optimizer"],
)
def test_a_changed_training_is_not_resumed(study, broken, changed, told):
    with pytest.raises(ValueError, match="another " + told):
        trained_in(study, broken, resume=True, **changed())


def test_what_a_killed_training_left_half_written_is_removed(study, tmp_path):
    run = new_run(study, tmp_path / "run")
    (run.folder / "checkpoints").mkdir()
    left = [".model.part.keras", ".history.csv.0f2a.part", "checkpoints/.epoch-0001.npz.9.part"]
    for name in left:
        (run.folder / name).write_bytes(b"half")
    batches, val = sequences(study)
    train(with_dropout(), batches, val, run, epochs=1)
    assert [path.name for path in run.folder.rglob("*.part*")] == []


def test_two_trainings_into_one_folder_are_refused(study, tmp_path):
    run = new_run(study, tmp_path / "run")
    with run.lock():
        other = f"from chexnet.runs import Run; Run({str(run.folder)!r}).lock().__enter__()"
        told = subprocess.run(
            [sys.executable, "-c", other],
            capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert "another process is training in this run folder" in told.stderr


# Trainings in processes of their own, each with a death: in place of renaming a file of this name,
# or after the first batch of this epoch. With an augmenter, for what resume compares must be the
# same in every process. TensorFlow is imported once, and not used before the forks.
TRAININGS = """
import json, os, signal, sys
from pathlib import Path
from chexnet.generator import default_augmenter
from chexnet.training.callbacks import EpochLog
from tests.training.test_loop import SIZE, make_study
from tests.training.test_resume import trained_in

def die_at(place):
    owner, name = (EpochLog, "on_train_batch_end") if isinstance(place, int) else (Path, "replace")
    really = getattr(owner, name)
    def dies(self, *given, **logs):
        if place == (self.epoch if owner is EpochLog else given[0].name):
            os.kill(os.getpid(), signal.SIGKILL)
        return really(self, *given, **logs)
    setattr(owner, name, dies)

study = make_study(Path(sys.argv[1]))
for folder, place in json.loads(sys.argv[2]):
    child = os.fork()
    if child == 0:
        die_at(place)
        augmenter = default_augmenter(SIZE, contrast=0.1)
        trained_in(study, Path(folder), resume=True, head_epochs=1, epochs=4, augmenter=augmenter)
        os._exit(0)
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
DEATHS = ["model.keras", "epoch-0001.npz", 2, "training.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed(study, tmp_path):
    """A training that is killed at any step ends as an unbroken one."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trainings = [(whole, None), *((broken, place) for place in DEATHS), (broken, None)]
    done = subprocess.run(
        [sys.executable, "-c", TRAININGS, study[0], json.dumps(trainings, default=str)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line[:6] == "status"]
    assert codes == [0, *[-signal.SIGKILL] * len(DEATHS), 0], done.stderr[-3000:]
    runs = Run(whole), Run(broken)
    curves = [run.history.drop(columns="seconds") for run in runs]
    pd.testing.assert_frame_equal(*curves, rtol=1e-6, atol=1e-6)
    networks = [load_chexnet(run.folder / "model.keras").get_weights() for run in runs]
    for mine, theirs in zip(*networks, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    assert [path.name for path in broken.rglob("*.part*")] == []
    # Before the first checkpoint there is nothing to go on from: two of them started anew.
    assert sorted(path.name for path in (broken / "earlier").iterdir()) == ["1", "2"]


def test_training_that_ran_out_of_time_goes_on_with_more_of_it(
    study, tmp_path, unbroken, states
):  # fmt: skip
    _, whole, last, _ = unbroken
    _, history = trained_in(study, tmp_path / "run", max_minutes=1e-4)
    assert len(history) == 1
    _, history = trained_in(study, tmp_path / "run", max_minutes=1e-4, resume=True)
    assert len(history) == 1  # the time of earlier sessions counts
    again, history = trained_in(study, tmp_path / "run", resume=True)
    assert_same(history, whole, states[-1], last)
    assert not (again.folder / "earlier").exists()
    assert not (again.folder / "checkpoints").exists()


def test_ended_and_evaluated(
    study, unbroken, ended, states, capsys
):  # fmt: skip
    """A training that has ended is loaded also after its evaluation."""
    history, model = unbroken[1], (ended.folder / "model.keras").read_bytes()
    ended.write_json("metrics.json", {})
    capsys.readouterr()
    again, same = trained_in(study, ended.folder, resume=True)
    pd.testing.assert_frame_equal(history, same)
    assert states == []
    assert not (again.folder / "earlier").exists()
    assert (again.folder / "model.keras").read_bytes() == model
    kept = history.query("saved == 1").iloc[-1]
    (line,) = capsys.readouterr().out.splitlines()
    assert f"has ended, its network is loaded (epoch {kept['epoch']} of 6" in line
    assert "resume=False in Run.create" in line
    trained_in(study, ended.folder)  # as that line says
    assert len(states) == unbroken[3]
    assert (ended.folder / "earlier" / "1" / "metrics.json").is_file()
