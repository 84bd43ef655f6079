"""After each epoch: validation is scored, the best network saved, the history written."""

import math
import secrets
import time

import keras
import numpy as np
import pandas as pd
from keras import ops
from sklearn.metrics import log_loss
from tqdm.auto import tqdm

from chexnet.auroc import auroc
from chexnet.generator import AugmentedImageSequence
from chexnet.runs import Run


class AurocCallback(keras.callbacks.Callback):
    """AUROC on validation after each epoch; the best epoch's network is saved at once.

    Adds ``val_auroc`` (mean over classes), ``val_loss`` (mean cross-entropy) and ``saved`` to the
    logs that later callbacks see. The file is written under another name and then renamed, so
    ``model.keras`` is always a whole network, and always of the last epoch whose ``saved`` is 1.

    With few validation films the AUROC moves by some hundredths from epoch to epoch, and while the
    learning rate is high one of those moves is a lucky one. So the search for the best starts
    anew at ``first_epoch``; what was saved before only keeps an interrupted run from being empty.
    """

    def __init__(
        self, model: keras.Model, val: AugmentedImageSequence, run: Run, *, first_epoch: int = 0
    ) -> None:
        """Scores ``model``, which may be a part of the network that is being fitted."""
        super().__init__()
        self.scored = model
        self.val = val
        self.run = run
        self.first_epoch = first_epoch
        self.best = -math.inf
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

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Scores validation, and saves the network where it is the best so far."""
        logs = {} if logs is None else logs
        _stop_unless_finite(epoch, logs.get("loss", 0.0))
        y_score = self.scored.predict(self.val, verbose=0)
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
            self.best = logs["val_auroc"]
            unfinished = self.run.folder / f".{secrets.token_hex(4)}.unfinished.keras"
            self.scored.save(unfinished)
            unfinished.replace(self.run.folder / "model.keras")


class EpochLog(keras.callbacks.Callback):
    """Writes the run's ``history.csv`` after each epoch and moves one progress bar."""

    def __init__(self, run: Run) -> None:
        """Starts an empty history."""
        super().__init__()
        self.run = run
        self.rows: list[dict] = []
        self.phase = "all"

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Opens the progress bar of this phase."""
        epochs = self.params["epochs"] - len(self.rows)
        self.bar = tqdm(total=epochs, desc=f"training ({self.phase})", unit="epoch")

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Notes the time."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds a row."""
        logs = dict(logs or {})
        row = {"epoch": epoch + 1, "phase": self.phase, **logs}
        row["learning_rate"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(time.perf_counter() - self.started, 2)
        self.rows.append(row)
        self.run.write_table("history.csv", pd.DataFrame(self.rows))
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", val_auroc=f"{row['val_auroc']:.3f}")
        self.bar.update()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the bar."""
        self.bar.close()


def _stop_unless_finite(epoch: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"epoch {epoch + 1}: the loss is {loss}; a lower learning_rate may help. model.keras "
            "holds the best epoch before it, if there was one"
        )
