"""After each epoch: validation is scored, the best network saved, the history written.

Where an interrupted training goes on: everything that the next epoch depends on.

Keras' own ``BackupAndRestore`` keeps weights and epoch. Here the two phases, the history, from
which callbacks take up what they knew, and the settings belong to it too, a damaged file must not
end the run, and nothing is unpickled; so a checkpoint is an ``.npz`` of plain arrays, and after it
the SHA-256 of all its bytes, for a zip file's own checksums leave its directory unguarded.
"""

import contextlib
import hashlib
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops
from sklearn.metrics import log_loss
from tqdm.auto import tqdm

from chexnet.auroc import auroc
from chexnet.files import UNFINISHED, write_atomic
from chexnet.generator import AugmentedImageSequence
from chexnet.runs import Run
from chexnet.training.distribution import for_scoring

KEPT = 2  # the newest, and the one before it should the newest be damaged
_NOTES = "notes"
_DIGEST = 32  # bytes of a SHA-256


@dataclass
class Checkpoint:
    """The state of a training after some epochs.

    Attributes:
        epoch: epochs done, over both phases.
        phase: ``"head"`` or ``"all"``, that of the last of them.
        history: the rows of ``history.csv`` so far.
        settings: of the training, JSON values; another training must not go on from here.
        stopped: why training ended early after this epoch, or None.
        network: the values of the network's variables, in its order.
        optimizer: those of the optimizer.
    """

    epoch: int
    phase: str
    history: list[dict]
    settings: dict
    stopped: str | None
    network: list[np.ndarray] = field(repr=False)
    optimizer: list[np.ndarray] = field(repr=False)

    def restore(self, variables: Sequence[keras.Variable], values: Sequence[np.ndarray]) -> None:
        """Puts ``values``, this checkpoint's ``network`` or ``optimizer``, into variables.

        Raises:
            ValueError: another number of them, or a shape that differs; it is named.
        """
        if len(variables) != len(values):
            raise ValueError(
                f"the checkpoint of epoch {self.epoch} holds {len(values)} arrays, this network "
                f"has {len(variables)} variables: it is of another network or optimizer"
            )
        for variable, value in zip(variables, values, strict=True):
            if tuple(variable.shape) != value.shape:
                raise ValueError(
                    f"the checkpoint of epoch {self.epoch} has {value.shape} for {variable.path}, "
                    f"which is {tuple(variable.shape)} here"
                )
            variable.assign(value)


def write_checkpoint(folder: Path, state: Checkpoint) -> Path:
    """Writes ``epoch-<n>.npz`` at one stroke and removes all but the newest two.

    Args:
        folder: made if need be.
        state: what to write.

    Returns:
        the path of the file.
    """
    kept = ("epoch", "phase", "history", "settings", "stopped")
    notes = {key: getattr(state, key) for key in kept}
    arrays = {f"network-{index}": array for index, array in enumerate(state.network)}
    arrays |= {f"optimizer-{index}": array for index, array in enumerate(state.optimizer)}
    buffer = io.BytesIO()
    np.savez(buffer, **{_NOTES: np.array(json.dumps(notes))}, **arrays)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{state.epoch:04d}.npz"
    content = buffer.getvalue()
    write_atomic(path, content + hashlib.sha256(content).digest())
    for old in checkpoint_files(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints there, the newest first."""
    return sorted(folder.glob("epoch-*.npz"), reverse=True)


def newest_checkpoint(folder: Path, *, up_to: int | None = None) -> Checkpoint | None:
    """Reads the newest checkpoint that is whole; of a damaged one a warning tells the name.

    Args:
        folder: where they lie.
        up_to: the epoch that none may have passed; None is any.

    Returns:
        ``None`` where there is none to go on from.
    """
    for path in checkpoint_files(folder):
        try:
            state = read_checkpoint(path)
            if up_to is None or state.epoch <= up_to:
                return state
        except ValueError as error:
            warnings.warn(f"{error}; the one before it is used", stacklevel=2)
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads one checkpoint.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = path.read_bytes()
        content, digest = content[:-_DIGEST], content[-_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("its checksum is another")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            notes = json.loads(str(stored[_NOTES]))
            counts = [
                sum(name.startswith(kind) for name in stored.files)
                for kind in ("network-", "optimizer-")
            ]
            network = [stored[f"network-{index}"] for index in range(counts[0])]
            optimizer = [stored[f"optimizer-{index}"] for index in range(counts[1])]
        return Checkpoint(network=network, optimizer=optimizer, **notes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged checkpoint ({error})") from error


class AurocCallback(keras.callbacks.Callback):
    """AUROC on validation after each epoch; the best epoch's network is saved at once.

    Adds ``val_auroc`` (mean over classes), ``val_loss`` (mean cross-entropy) and ``saved`` to the
    logs that later callbacks see. The file is written under another name and then renamed, so
    ``model.keras`` is always a whole network, and always of the last epoch whose ``saved`` is 1.
    Where training keeps a running mean of the weights, that mean is what is scored and saved.

    With few validation films the AUROC moves by some hundredths from epoch to epoch, and while the
    learning rate is high one of those moves is a lucky one. So the search for the best starts
    anew at ``first_epoch``; what was saved before only keeps an interrupted run from being empty.

    Attributes:
        stopped: why it ended training early, or None.
    """

    def __init__(
        self,
        model: keras.Model,
        val: AugmentedImageSequence,
        run: Run,
        *,
        first_epoch: int = 0,
        patience: int | None = None,
        batches: AugmentedImageSequence | None = None,
    ) -> None:
        """Scores ``model``, which may be a part of the network that is being fitted.

        With ``patience``, training ends once that many epochs, counted from ``first_epoch``, have
        brought no better AUROC. ``batches`` are those of training, to name the films after which
        scores are no longer numbers.
        """
        super().__init__()
        self.scored = model
        self.val = val
        self.run = run
        self.first_epoch = first_epoch
        self.patience = patience
        self.batches = batches
        self.best = -math.inf
        self.best_epoch = 0
        self.stopped: str | None = None
        if val.shuffle or val.augmenter is not None or val.map_size is not None:
            raise ValueError(
                "validation must be neither shuffled nor augmented nor carry boxes: "
                f"shuffle={val.shuffle}, augmenter={val.augmenter}, map_size={val.map_size}"
            )
        self.y_true = val.labels
        for index, name in enumerate(val.class_names):
            if len(np.unique(self.y_true[:, index])) < 2:
                raise ValueError(
                    f"validation: {len(self.y_true)} films, all with the same {name}; the AUROC "
                    "needs films with and without it"
                )

    def remember(self, history: list[dict]) -> None:
        """Takes up the best epoch so far from the rows of an interrupted training."""
        for row in history:
            if row["epoch"] - 1 == self.first_epoch or row["saved"]:
                self.best, self.best_epoch = row["val_auroc"], row["epoch"] - 1

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Scores validation, and saves the network where it is the best so far.

        Raises:
            FloatingPointError: scores are NaN; the films of the epoch's last batch are named.
        """
        logs = {} if logs is None else logs
        with averaged(self.model), for_scoring(self.scored) as scored:
            self._score(scored, epoch, logs)
        waited = epoch - max(self.best_epoch, self.first_epoch)
        if self.patience is not None and waited >= self.patience:
            self.stopped = f"no better AUROC on validation for {waited} epochs"
            self.model.stop_training = True

    def _score(self, scored: keras.Model, epoch: int, logs: dict) -> None:
        y_score = scored.predict(self.val, verbose=0)
        strange = int(np.isnan(y_score).sum())
        if strange:
            what = f"{strange} of {y_score.size} scores on validation are NaN"
            raise _not_finite(what, self.batches, epoch, -1)
        logs["val_auroc"] = float(
            np.mean([auroc(t, s).value for t, s in zip(self.y_true.T, y_score.T, strict=True)])
        )
        logs["val_loss"] = float(
            np.mean([log_loss(t, s) for t, s in zip(self.y_true.T, y_score.T, strict=True)])
        )
        if epoch == self.first_epoch:
            self.best = -math.inf
        logs["saved"] = int(logs["val_auroc"] > self.best)
        if logs["saved"]:
            self.best, self.best_epoch = logs["val_auroc"], epoch
            # Keras wants the ending .keras; the run is held, so nobody else writes this name.
            unfinished = self.run.folder / f".model{UNFINISHED}.keras"
            scored.save(unfinished)
            unfinished.replace(self.run.folder / "model.keras")


class EpochLog(keras.callbacks.Callback):
    """Writes the run's ``history.csv`` after each epoch and moves one progress bar, in films.

    Attributes:
        rows: of the history.
        phase: written into each row.
        stopped: why it ended training early, or None.
    """

    def __init__(
        self,
        run: Run,
        batches: AugmentedImageSequence,
        *,
        history: list[dict] | None = None,
        max_minutes: float | None = None,
    ) -> None:
        """Goes on from ``history``; ends training before an epoch would pass ``max_minutes``."""
        super().__init__()
        self.run = run
        self.batches = batches
        self.rows = list(history or [])
        self.max_minutes = max_minutes
        self.phase = "all"
        self.stopped = self._out_of_time()

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Opens the progress bar of this phase."""
        films = len(self.batches.image_ids)
        epochs = self.params["epochs"] - len(self.rows)
        self.bar = tqdm(total=epochs * films, desc=f"training ({self.phase})", unit=" films")

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the batches to this epoch and notes the time."""
        # Some backends fetch a batch before the first epoch, which the sequence takes for one.
        self.batches.epoch = epoch
        self.epoch = epoch
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Moves the bar.

        Raises:
            FloatingPointError: the loss is not finite; the films of this batch are named.
        """
        # Keras gives the mean over the epoch so far: the first that is not finite is this batch's.
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise _not_finite(f"the loss is {loss}", self.batches, self.epoch, batch)
        self.bar.update(len(self.batches.rows(self.epoch, batch)))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds a row."""
        row = {"epoch": epoch + 1, "phase": self.phase, **(logs or {})}
        row["learning_rate"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(time.perf_counter() - self.started, 2)
        self.rows.append(row)
        self.run.write_table("history.csv", pd.DataFrame(self.rows))
        self.bar.set_postfix(
            epoch=epoch + 1, loss=f"{row['loss']:.3f}", val_auroc=f"{row['val_auroc']:.3f}"
        )
        self.stopped = self._out_of_time()
        if self.stopped:
            self.model.stop_training = True

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the bar."""
        self.bar.close()

    def _out_of_time(self) -> str | None:
        seconds = [row["seconds"] for row in self.rows]
        if self.max_minutes is None or not seconds:
            return None
        if sum(seconds) + max(seconds) <= 60 * self.max_minutes:
            return None
        return f"another epoch would have passed {self.max_minutes} minutes"


class Checkpoints(keras.callbacks.Callback):
    """Writes a checkpoint after each epoch; stands last, when all others have done their work."""

    def __init__(
        self,
        run: Run,
        log: EpochLog,
        variables: list[keras.Variable],
        settings: dict,
        stopped: Callable[[], str | None],
    ) -> None:
        """Keeps ``variables`` and the optimizer's; ``stopped`` is asked why training ends."""
        super().__init__()
        self.folder = run.folder / "checkpoints"
        self.log = log
        self.variables = variables
        self.settings = settings
        self.stopped = stopped

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes ``checkpoints/epoch-<n>.npz`` of the run."""
        state = Checkpoint(
            epoch=epoch + 1,
            phase=self.log.phase,
            history=self.log.rows,
            settings=self.settings,
            stopped=self.stopped(),
            network=[ops.convert_to_numpy(one) for one in self.variables],
            optimizer=[ops.convert_to_numpy(one) for one in self.model.optimizer.variables],
        )
        write_checkpoint(self.folder, state)


def _not_finite(
    what: str, batches: AugmentedImageSequence | None, epoch: int, batch: int
) -> FloatingPointError:
    """The error that names the films of a batch; -1 is the last."""
    where = ""
    if batches is not None:
        batch = range(len(batches))[batch]
        named = ", ".join(batches.image_ids[batches.rows(epoch, batch)])
        where = f" after batch {batch} with the films {named}"
    return FloatingPointError(
        f"epoch {epoch + 1}: {what}{where}; look at them, or lower learning_rate. model.keras "
        "holds the best epoch before it, if there was one"
    )


@contextlib.contextmanager
def averaged(trained: keras.Model) -> Iterator[None]:
    """Within it, a compiled network has the running mean of its weights, if its optimizer keeps it.

    The statistics of BatchNormalization stay: they are running means already.
    """
    weights = trained.trainable_variables
    latest = [np.array(ops.convert_to_numpy(one)) for one in weights]
    trained.optimizer.finalize_variable_values(weights)
    for variable in weights:
        # On JAX a weight and its mean are now one array, which `predict` would give away.
        variable.assign(np.array(ops.convert_to_numpy(variable)))
    try:
        yield
    finally:
        for variable, value in zip(weights, latest, strict=True):
            variable.assign(value)
