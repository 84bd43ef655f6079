"""What a training shows while it runs: a progress bar, a growing table of epochs, a clean stop."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from tqdm.auto import tqdm

from chexnet.backend import keras
from chexnet.runs import Run
from chexnet.training.resume import checkpoint_files

_LAYERS = {"head": "head only", "all": "all layers"}
_HEADER = "epoch    loss  val AUROC  learning rate  seconds  kept"


class TrainingStopped(KeyboardInterrupt):
    """The stop button or Ctrl-C ended a training that can go on. Jupyter shows the message alone.

    It is a `KeyboardInterrupt`, so that nothing takes it for an error to recover from.
    """

    def _render_traceback_(self) -> list[str]:  # the name that IPython looks for
        return [str(self)]


class Progress:
    """A bar of films for one phase. Its clock starts when the graph is built."""

    def __init__(self, phase: str, films: int) -> None:
        """Shows that the graph is being built, which takes as long as hundreds of batches."""
        self._phase = phase
        self._began = time.perf_counter()
        self._building = True
        self._bar = tqdm(total=films, unit=" films", desc="building the graph, about a minute")

    def add(self, films: int) -> None:
        """Moves the bar after a batch."""
        if not self._building:
            self._bar.update(films)
            return
        self._building = False
        seconds = time.perf_counter() - self._began
        tqdm.write(f"Training, {_LAYERS[self._phase]}: graph built in {seconds:.0f} s")
        tqdm.write(_HEADER)
        self._bar.set_description(f"training, {_LAYERS[self._phase]}", refresh=False)
        # The time so far is not that of a batch: the estimate of the rest begins here.
        self._bar.initial = self._bar.n = films
        self._bar.unpause()
        self._bar.refresh()

    def add_row(self, row: dict) -> None:
        """Prints the row of an epoch."""
        tqdm.write(_line(row))

    def close(self) -> None:
        """Closes the bar where it is."""
        self._bar.close()


def print_rows(rows: list[dict]) -> None:
    """Prints the table of the epochs before a training goes on."""
    if rows:
        print(f"Going on after epoch {rows[-1]['epoch']}:")
        print("\n".join([_HEADER, *map(_line, rows)]))


def loaded_line(run: Run) -> str:
    """Says that a finished training was loaded, which epoch, and how to train anew."""
    kept = run.history.query("saved == 1").iloc[-1]
    return (
        f"{run.folder}: this training has ended, its network is loaded (epoch {kept['epoch']:.0f} "
        f"of {len(run.history)}, validation AUROC {kept['val_auroc']:.3f}). To train anew, take "
        "another run folder, or resume=False in Run.create."
    )


@contextmanager
def clean_stop(run: Run, variables: Sequence[keras.Variable], *, resume: bool) -> Iterator[None]:
    """Turns a KeyboardInterrupt into a message that says which epochs are kept.

    The variables get the values back that they had: the next call must not start from half an
    epoch.

    Raises:
        TrainingStopped: a KeyboardInterrupt came.
    """
    values = [np.array(keras.ops.convert_to_numpy(one)) for one in variables]
    try:
        yield
    except KeyboardInterrupt:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        newest = next(iter(checkpoint_files(run.folder / "checkpoints")), None)
        epochs = 0 if newest is None else int(newest.stem.removeprefix("epoch-"))
        kept = {0: "no epoch is kept", 1: "epoch 1 is kept"}
        what = kept.get(epochs, f"epochs 1 to {epochs} are kept")
        then = "Run the cell again to " + ("go on" if epochs else "start again")
        if epochs and not resume:
            then = "To go on, run it again with resume=True"
        raise TrainingStopped(f"Stopped in epoch {epochs + 1}; {what}. {then}.") from None


def _line(row: dict) -> str:
    kept = "yes" if row["saved"] else ""
    return (
        f"{row['epoch']:5d}  {row['loss']:6.3f}  {row['val_auroc']:9.3f}  "
        f"{row['learning_rate']:13.1e}  {row['seconds']:7.1f}  {kept}"
    ).rstrip()
