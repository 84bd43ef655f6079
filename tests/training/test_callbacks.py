"""What is done after each epoch, on made-up epochs: nothing is trained here."""

import errno
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from chexnet.training.callbacks import AurocCallback, Checkpoints, EpochLog, assign, ema_weights
from chexnet.training.resume import Checkpoint, read_checkpoint
from tests.training.test_loop import Scripted, compiled_network, new_run, sequences, tiny_network


@pytest.fixture(scope="module")
def parts(study):
    return sequences(study)


@pytest.fixture
def run(study, tmp_path):
    return new_run(study, tmp_path / "run")


@pytest.fixture(scope="module")
def trained():
    """A compiled network, whose optimizer has a state."""
    return compiled_built()


def scored(run, val, batches, scores, **options):
    """The callback on a network with these scores, one array an epoch."""
    callback = AurocCallback(Scripted(scores), val, run, batches, **options)
    callback.set_model(SimpleNamespace(trainable_variables=[], optimizer=NoAverage()))
    return callback


class NoAverage:
    def finalize_variable_values(self, weights):
        assert weights == []


def test_a_full_disk_is_named(parts, run, monkeypatch):
    batches, val = parts

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    callback = scored(run, val, batches, [np.linspace(0.1, 0.9, len(val.labels))])
    monkeypatch.setattr(Scripted, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.keras"):
        callback.on_epoch_end(0, {})


def test_auroc_and_loss_of_an_epoch(parts, run):
    batches, val = parts
    scores = np.random.default_rng(0).uniform(0.1, 0.9, len(val.labels))
    callback = scored(run, val, batches, [scores])
    assert callback.best == -np.inf
    logs = {}
    callback.on_epoch_end(0, logs)
    truth = val.labels[:, 0]
    assert logs == {
        "val_auroc": pytest.approx(roc_auc_score(truth, scores)),
        "val_loss": pytest.approx(log_loss(truth, scores)),
        "saved": 1,
    }
    assert (run.folder / "model.keras").read_text() == "a network"
    assert [path.name for path in run.folder.rglob("*.part*")] == []


class Films:
    """Stands for a sequence with two classes and these labels."""

    shuffle, augmenter, map_size, class_names = False, None, None, ("A", "B")

    def __init__(self, labels):
        self.labels = np.array(labels, dtype=float)


class Two(Scripted):
    def predict(self, batches, verbose):
        assert verbose == 0
        return np.array(next(self.scores))


def test_mean_over_the_known_labels_of_each_class(run):
    films = Films([[0, 1], [1, np.nan], [0, 0], [1, 1]])
    scores = np.array([[0.2, 0.6], [0.7, 0.1], [0.8, 0.3], [0.9, 0.2]])
    callback = scored(run, films, films, [])
    callback.scored = Two([scores])
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["val_auroc"] == (3 / 4 + 1 / 2) / 2
    losses = [log_loss([0, 1, 0, 1], scores[:, 0]), log_loss([1, 0, 1], scores[[0, 2, 3], 1])]
    assert logs["val_loss"] == pytest.approx(np.mean(losses))


def test_class_with_one_value(run):
    """A class with one value on validation is left out with a warning."""
    train, val = Films([[0, 1], [1, 0]]), Films([[0, 1], [1, np.nan]])
    with pytest.warns(UserWarning, match="validation has no films with and without B;"):
        callback = AurocCallback(Two([[[0.1, 0.2], [0.9, 0.3]]]), val, run, train)
    callback.set_model(SimpleNamespace(trainable_variables=[], optimizer=NoAverage()))
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["val_auroc"] == 1
    with pytest.raises(ValueError, match="training: 2 films, all with the same B; expected"):
        AurocCallback(Two([]), train, run, val)
    neither = Films([[0, 0], [0, np.nan]])
    with pytest.raises(ValueError, match="validation: 2 films, all with the same A, B;"):
        AurocCallback(Two([]), neither, run, train)


def test_an_equal_auroc_is_not_saved_again(parts, run):
    batches, val = parts
    right = val.labels[:, 0] * 0.8 + 0.1
    callback = scored(run, val, batches, [right, right])
    saved = []
    for epoch in range(2):
        logs = {}
        callback.on_epoch_end(epoch, logs)
        saved.append(logs["saved"])
    assert saved == [1, 0]


def test_scores_that_are_nan_are_counted(parts, run):
    batches, val = parts
    scores = np.where(np.arange(len(val.labels)) < 2, np.nan, 0.5)
    callback = scored(run, val, batches, [scores])
    with pytest.raises(FloatingPointError) as error:
        callback.on_epoch_end(3, {})
    last = batches.image_ids[batches.rows(3, len(batches) - 1)]
    assert f"epoch 4: 2 of 24 scores on validation are NaN after batch {len(batches) - 1}" in (
        str(error.value)
    )
    assert ", ".join(last) in str(error.value)
    assert not (run.folder / "model.keras").exists()


def test_the_best_so_far_is_taken_from_the_history(parts, run):
    batches, val = parts
    rows = [
        {"epoch": 1, "val_auroc": 0.9, "saved": 1},
        {"epoch": 2, "val_auroc": 0.6, "saved": 0},  # the search starts again here
        {"epoch": 3, "val_auroc": 0.5, "saved": 0},
        {"epoch": 4, "val_auroc": 0.7, "saved": 1},
        {"epoch": 5, "val_auroc": 0.65, "saved": 0},
    ]
    for count, best in enumerate([-np.inf, 0.9, 0.6, 0.6, 0.7, 0.7]):
        callback = scored(run, val, batches, [], first_epoch=1)
        callback.recall(rows[:count])
        assert callback.best == best


def log_of(run, batches, seconds=(), **options):
    return EpochLog(run, batches, [{"seconds": one} for one in seconds], **options)


@pytest.mark.parametrize(
    ("seconds", "minutes", "out"),
    [
        ((), 1, False),
        ((20, 20), None, False),
        ((10, 20), 1, False),  # 30 s, and 20 s more
        ((20, 20), 1, False),  # exactly one minute
        ((15, 25), 1, True),  # 65 s
        ((25, 15), 1, True),
    ],
)
def test_time_for_one_more_epoch(run, parts, seconds, minutes, out):
    assert log_of(run, parts[0], seconds, max_minutes=minutes).out_of_time is out


class Bar:
    """Stands for the progress bar."""

    def __init__(self, phase, films):
        self.made, self.films, self.shown, self.closed = (phase, films), 0, [], False

    def add(self, films):
        self.films += films

    def add_row(self, row):
        self.shown.append(row["epoch"])

    def close(self):
        self.closed = True


@pytest.fixture
def log(run, parts, monkeypatch):
    """The log of a phase that goes on after one epoch of 100 seconds."""
    monkeypatch.setattr("chexnet.training.callbacks.Progress", Bar)
    row = {"epoch": 1, "phase": "head", "loss": 0.7, "learning_rate": 1e-3, "seconds": 100.0}
    log = EpochLog(run, parts[0], [row], phase="all")
    log.set_params({"epochs": 4})
    log.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=0.25)))
    log.on_train_begin()
    return log


def test_an_epoch_in_bar_and_history(log, run, parts, monkeypatch):
    batches, now = parts[0], [50.0]
    monkeypatch.setattr("chexnet.training.callbacks.time.perf_counter", lambda: now[0])
    assert log.progress.made == ("all", 3 * 72)
    log.on_epoch_begin(1)
    assert (batches.epoch, log.epoch) == (1, 1)
    for batch in range(len(batches)):
        log.on_train_batch_end(batch, {"loss": 0.5})
    assert log.progress.films == 72
    now[0] += 1.2345
    log.on_epoch_end(1, {"loss": 0.5, "saved": 1})
    row = {"epoch": 2, "phase": "all", "loss": 0.5, "learning_rate": 0.25, "seconds": 1.23}
    assert log.rows[1:] == [row | {"saved": 1}]
    assert log.progress.shown == [2]
    pd.testing.assert_frame_equal(run.history, pd.DataFrame(log.rows))
    assert not hasattr(log.model, "stop_training")
    log.close()
    assert log.progress.closed


def test_out_of_time_stops_training(log, monkeypatch):
    log.max_minutes = 2
    log.on_epoch_begin(1)
    log.on_epoch_end(1, {"loss": 0.5})
    assert log.model.stop_training is True


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_its_batch(log, parts, loss):
    batches = parts[0]
    log.on_epoch_begin(2)
    with pytest.raises(FloatingPointError) as error:
        log.on_train_batch_end(1, {"loss": loss})
    named = ", ".join(batches.image_ids[batches.rows(2, 1)])
    assert f"epoch 3: the loss is {loss} after batch 1 with the films {named};" in str(error.value)


class Counter(keras.callbacks.EarlyStopping):
    """Notes the epochs that it is shown; Keras' own would need a training."""

    def __init__(self):
        super().__init__("val_auroc", mode="max")
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs["val_auroc"]))


def rows_of(*phases):
    """A history with these phases."""
    return [
        {"epoch": number, "phase": phase, "val_auroc": number / 10, "saved": 1, "seconds": 1.0}
        for number, phase in enumerate(phases, 1)
    ]


def checkpoints(run, batches, network, state, phase="all", **options):
    log = EpochLog(run, batches, rows_of("head", "all"), phase=phase, **options)
    counter, other = Counter(), keras.callbacks.LambdaCallback(on_epoch_end=pytest.fail)
    saved = Checkpoints(log, network.variables, {"epochs": 3}, state, [counter, other])
    saved.set_model(network)
    return saved, counter


def state_of(network, phase):
    fill = [np.full(one.shape, 0.5) for one in network.optimizer.variables]
    return Checkpoint(2, phase, rows_of("head", "all", "all"), {}, False, [], fill)


@pytest.mark.parametrize("phase", [None, "head", "all"])
def test_a_phase_that_has_begun_goes_on(run, parts, phase):
    network = compiled_network()
    state = phase and state_of(compiled_built(), phase)
    saved, counter = checkpoints(run, parts[0], network, state)
    saved.on_train_begin()
    if phase == "all":
        assert counter.seen == [(1, 0.2), (2, 0.3)]
        values = [np.unique(one.numpy()) for one in network.optimizer.variables[2:]]
        np.testing.assert_array_equal(np.concatenate(values), 0.5)
    else:
        assert counter.seen == []
        assert not network.optimizer.built


def compiled_built():
    network = compiled_network()
    network.optimizer.build(network.trainable_variables)
    return network


@pytest.mark.parametrize(
    ("stopped", "minutes", "kept"),
    [(False, None, False), (True, None, True), (True, 1e-4, False)],
)
def test_a_checkpoint_is_written(run, parts, trained, stopped, minutes, kept):
    trained.stop_training = stopped
    saved, _ = checkpoints(run, parts[0], trained, None, max_minutes=minutes)
    saved.on_epoch_end(1)
    state = read_checkpoint(run.folder / "checkpoints" / "epoch-0002.npz")
    assert (state.epoch, state.phase, state.settings) == (2, "all", {"epochs": 3})
    assert (state.history, state.stopped) == (saved.log.rows, kept)
    for written, variables in (
        (state.network, trained.variables),
        (state.optimizer, trained.optimizer.variables),
    ):
        assert len(written) == len(variables) > 0
        for array, variable in zip(written, variables, strict=True):
            np.testing.assert_array_equal(array, variable.numpy())


def test_another_network_takes_no_values(trained):
    values = [np.full(one.shape, 3.0) for one in trained.variables]
    other = tiny_network()
    assign(other.variables, values)
    assert all((one.numpy() == 3).all() for one in other.variables)
    for wrong in (values[:-1], [*values, values[0]], [values[1], *values[1:]]):
        with pytest.raises(ValueError, match=r"argument|shape"):
            assign(other.variables, wrong)


def test_the_average_of_the_weights_is_used_within():
    network = tiny_network()
    network.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))
    weights = network.trainable_variables
    network.optimizer.build(weights)
    for average in network.optimizer._model_variables_moving_average:
        average.assign(np.full(average.shape, 7.0))
    before = network.get_weights()
    with pytest.raises(KeyError), ema_weights(network):
        assert all((one.numpy() == 7).all() for one in weights)
        raise KeyError
    for mine, theirs in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
