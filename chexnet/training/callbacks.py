"""After each epoch: score validation, save the best network, write history and checkpoint."""

import contextlib
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss

from chexnet.auroc import auroc
from chexnet.backend import keras
from chexnet.files import UNFINISHED, naming
from chexnet.generator import AugmentedImageSequence
from chexnet.runs import Run
from chexnet.training.distribution import single_device_copy
from chexnet.training.progress import Progress
from chexnet.training.resume import Checkpoint, write_checkpoint

ops = keras.ops

# These count epochs and start anew in each ``fit``: a resumed training shows them those before.
_COUNTING = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)


class _Callback(keras.callbacks.Callback):
    def __post_init__(self) -> None:
        super().__init__()  # a dataclass does not call it


@dataclass(eq=False)
class AurocCallback(_Callback):
    """AUROC on validation after each epoch; the network of the best epoch is saved at once.

    Adds ``val_auroc`` and ``val_loss`` (cross-entropy) to the logs: of the known labels, mean over
    the classes that have both. Adds ``saved``; ``model.keras`` is always of the last epoch where it
    is 1. The search for the best starts again at ``first_epoch``, counted from 0; what was saved
    before serves interrupted runs.
    """

    scored: keras.Model  # may be a part of the network that is fitted
    val: AugmentedImageSequence
    run: Run
    batches: AugmentedImageSequence  # of training, to name films in errors
    first_epoch: int = 0
    best: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        """Checks the validation split, and that both splits have both values of each class."""
        super().__post_init__()
        val = self.val
        if val.shuffle or val.augmenter is not None or val.map_size is not None:
            raise ValueError(
                "validation must be neither shuffled nor augmented nor carry boxes: "
                f"shuffle={val.shuffle}, augmenter={val.augmenter}, map_size={val.map_size}"
            )
        for part, films in ("training", self.batches), ("validation", val):
            both = [{0, 1} <= set(labels) for labels in films.labels.T]
            one = ", ".join(
                name for name, has in zip(films.class_names, both, strict=True) if not has
            )
            if not any(both) or (one and part == "training"):
                raise ValueError(
                    f"{part}: {len(films.labels)} films, all with the same {one}; expected films "
                    "with and without it"
                )
            if one:
                warnings.warn(
                    f"validation has no films with and without {one}; the AUROC that chooses the "
                    "epoch is the mean of the other classes",
                    stacklevel=3,
                )

    def recall(self, history: Sequence[dict]) -> None:
        """Takes the best AUROC so far from the rows of an interrupted training."""
        for row in history:
            if row["epoch"] - 1 == self.first_epoch or row["saved"]:
                self.best = row["val_auroc"]

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        """Scores validation, and saves the network if it is the best so far."""
        with ema_weights(self.model), single_device_copy(self.scored) as scored:
            y_score = scored.predict(self.val, verbose=0)
            invalid = int(np.isnan(y_score).sum())
            if invalid:
                what = f"{invalid} of {y_score.size} scores on validation are NaN"
                raise _not_finite(what, self.batches, epoch, len(self.batches) - 1)
            pairs = [
                (y_true[~np.isnan(y_true)], scores[~np.isnan(y_true)])
                for y_true, scores in zip(self.val.labels.T, y_score.T, strict=True)
                if {0, 1} <= set(y_true)
            ]
            logs["val_auroc"] = float(np.mean([auroc(*pair).value for pair in pairs]))
            logs["val_loss"] = float(np.mean([log_loss(*pair) for pair in pairs]))
            if epoch == self.first_epoch:
                self.best = -math.inf
            logs["saved"] = int(logs["val_auroc"] > self.best)
            if logs["saved"]:
                self.best = logs["val_auroc"]
                # Keras asks for this ending. The run is locked: nobody else writes this name.
                unfinished = self.run.folder / f".model{UNFINISHED}.keras"
                saved = self.run.folder / "model.keras"
                with self.run.lock(), naming(saved):
                    scored.save(unfinished)
                    unfinished.replace(saved)


@dataclass(eq=False)
class EpochLog(_Callback):
    """Writes the run's ``history.csv`` after each epoch and shows how far training is."""

    run: Run
    batches: AugmentedImageSequence
    rows: list[dict]  # of the history so far
    max_minutes: float | None = None
    phase: str = "all"  # written into each row

    @property
    def out_of_time(self) -> bool:
        """Whether one more epoch, as long as the longest, would pass ``max_minutes``."""
        seconds = [row["seconds"] for row in self.rows]
        if self.max_minutes is None or not seconds:
            return False
        return sum(seconds) + max(seconds) > 60 * self.max_minutes

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Opens the progress bar of this phase."""
        films = len(self.batches.image_ids)
        epochs = self.params["epochs"] - len(self.rows)
        self.progress = Progress(self.phase, epochs * films)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the batches to this epoch and notes the time."""
        # Some backends fetch a batch before the first epoch, which the sequence takes for one.
        self.batches.epoch = epoch
        self.epoch = epoch
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict) -> None:
        """Moves the bar; stops at a loss that is not finite."""
        # Keras gives the mean over the epoch so far: the first that is not finite is this batch's.
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise _not_finite(f"the loss is {loss}", self.batches, self.epoch, batch)
        self.progress.add(len(self.batches.rows(self.epoch, batch)))

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        """Adds a row; stops before an epoch would pass ``max_minutes``."""
        row = {"epoch": epoch + 1, "phase": self.phase, **logs}
        row["learning_rate"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(time.perf_counter() - self.started, 2)
        self.rows.append(row)
        self.run.write_table("history.csv", pd.DataFrame(self.rows))
        self.progress.add_row(row)
        if self.out_of_time:
            self.model.stop_training = True

    def close(self) -> None:
        """Closes the progress bar; also after an error, for which Keras has no event."""
        self.progress.close()


@dataclass(eq=False)
class Checkpoints(_Callback):
    """Goes on from a checkpoint and writes one after each epoch; the last of all callbacks."""

    log: EpochLog
    variables: Sequence[keras.Variable]  # of the network
    settings: dict
    state: Checkpoint | None  # to go on from
    callbacks: Sequence[keras.callbacks.Callback]  # the user's

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restores callbacks and optimizer, if this phase has begun before."""
        if self.state is None or self.state.phase != self.log.phase:
            return
        for callback in self.callbacks:
            for row in self.state.history:
                if isinstance(callback, _COUNTING) and row["phase"] == self.state.phase:
                    callback.on_epoch_end(row["epoch"] - 1, dict(row))
        # Last, for the learning rate that a callback has lowered is part of the optimizer.
        self.model.optimizer.build(self.model.trainable_variables)
        assign(self.model.optimizer.variables, self.state.optimizer)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes the checkpoint."""
        state = Checkpoint(
            epoch=epoch + 1,
            phase=self.log.phase,
            history=self.log.rows,
            settings=self.settings,
            stopped=bool(self.model.stop_training) and not self.log.out_of_time,
            network=[ops.convert_to_numpy(one) for one in self.variables],
            optimizer=[ops.convert_to_numpy(one) for one in self.model.optimizer.variables],
        )
        with self.log.run.lock():
            write_checkpoint(self.log.run.folder / "checkpoints", state)


def assign(variables: Sequence[keras.Variable], values: Sequence[np.ndarray]) -> None:
    """Gives variables their values; Keras refuses another number or shape with a ValueError."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextlib.contextmanager
def ema_weights(trained: keras.Model) -> Iterator[None]:
    """Within it, a compiled network has the average of its weights, if its optimizer keeps one.

    The statistics of BatchNormalization stay: they are moving averages already. (Keras'
    ``SwapEMAWeights`` swaps by adding and subtracting, which changes the weights by rounding.)
    """
    weights = trained.trainable_variables
    latest = [np.array(ops.convert_to_numpy(one)) for one in weights]
    trained.optimizer.finalize_variable_values(weights)
    for variable in weights:
        # On JAX a weight and its average are now one array, which `predict` would give away.
        variable.assign(np.array(ops.convert_to_numpy(variable)))
    try:
        yield
    finally:
        assign(weights, latest)


def _not_finite(
    what: str, batches: AugmentedImageSequence, epoch: int, batch: int
) -> FloatingPointError:
    named = ", ".join(batches.image_ids[batches.rows(epoch, batch)])
    return FloatingPointError(
        f"epoch {epoch + 1}: {what} after batch {batch} with the films {named}; check these films, "
        "or lower learning_rate. model.keras holds the best epoch before it, if there was one"
    )
