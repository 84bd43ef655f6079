"""Where an interrupted training goes on: everything that the next epoch depends on.

Keras' own ``BackupAndRestore`` keeps weights and epoch. Here the two phases, the history, from
which callbacks take up what they knew, and the settings belong to it too, a damaged file must not
end the run, and nothing is unpickled; so a checkpoint is an ``.npz`` of plain arrays, and after it
the SHA-256 of all its bytes, for a zip file's own checksums leave its directory unguarded.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from chexnet.filmtable import write_whole

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
    write_whole(path, content + hashlib.sha256(content).digest())
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
