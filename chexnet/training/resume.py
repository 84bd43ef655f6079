"""Checkpoints, and what must be the same for a training to go on from one.

Keras' ``BackupAndRestore`` does not write atomically, deletes its file after each ``fit``, keeps no
history and compares no settings; ``save_weights`` leaves out the random state of Dropout. So a
checkpoint here is an ``.npz`` file of all variables, written atomically. It ends with a checksum
(those of a zip file do not cover its directory), and nothing in it is unpickled.
"""

import hashlib
import io
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chexnet.backend import keras
from chexnet.files import write_atomic
from chexnet.generator import AugmentedImageSequence
from chexnet.runs import Run
from chexnet.training.distribution import all_gather

KEPT = 2  # the newest, and the one before it should the newest be damaged
_SHA256 = 32  # bytes
_FREE = ("name", "trainable")  # of a layer: the first counts up, the second changes with the phase


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after an epoch."""

    epoch: int  # epochs done, over both phases
    phase: str  # "head" or "all", that of the last of them
    history: list[dict]  # the rows of history.csv so far
    settings: dict  # JSON values
    stopped: bool  # whether a callback ended training after this epoch
    network: list[np.ndarray] = field(repr=False)  # in the order of the network's variables
    optimizer: list[np.ndarray] = field(repr=False)


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints there, the newest first."""
    return sorted(folder.glob("epoch-*.npz"), reverse=True)


def write_checkpoint(folder: Path, state: Checkpoint) -> Path:
    """Writes ``epoch-<n>.npz`` atomically, removes all but the newest two, and returns its path."""
    fields = dict(vars(state))
    arrays: dict[str, Any] = {}
    for kind in ("network", "optimizer"):
        arrays |= {f"{kind}-{index}": array for index, array in enumerate(fields.pop(kind))}
    buffer = io.BytesIO()
    np.savez(buffer, fields=np.array(json.dumps(fields, default=np.generic.item)), **arrays)
    content = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{state.epoch:04d}.npz"
    write_atomic(path, content + hashlib.sha256(content).digest())
    for old in checkpoint_files(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and compares its checksum; a ValueError says that it is damaged."""
    try:
        content = path.read_bytes()
        content, checksum = content[:-_SHA256], content[-_SHA256:]
        if hashlib.sha256(content).digest() != checksum:
            raise ValueError("its checksum differs")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            fields = json.loads(str(stored["fields"]))
            for kind in ("network", "optimizer"):
                fields[kind] = [stored[name] for name in stored.files if name.startswith(kind)]
            return Checkpoint(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged checkpoint ({error})") from error


def newest_checkpoint(folder: Path, *, up_to: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint, at most of epoch ``up_to``; a warning names each damaged one."""
    for path in checkpoint_files(folder):
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            warnings.warn(f"{error}; the one before it is used", stacklevel=2)
            continue
        if up_to is None or state.epoch <= up_to:
            return state
    return None


def checkpoint_to_resume(run: Run, settings: dict) -> Checkpoint | None:
    """The checkpoint to go on from: the newest that every process has."""
    state = newest_checkpoint(run.folder / "checkpoints")
    if state is not None:
        _check_same(run, state.settings, settings)
    # Killed at the end of an epoch, one process may have written its checkpoint and another not.
    while len(reached := set(all_gather(state.epoch if state else 0))) > 1:
        state = newest_checkpoint(run.folder / "checkpoints", up_to=min(reached))
    return state


def has_ended(run: Run, settings: dict) -> bool:
    """Whether the training of this run has ended; while it has checkpoints, it can go on."""
    record = run.folder / "training.json"
    ended = record.is_file() and not checkpoint_files(run.folder / "checkpoints")
    if ended:
        _check_same(run, json.loads(record.read_text())["settings"], settings)
    if len(set(all_gather(ended))) > 1:
        raise ValueError(
            f"{run.folder}: this training has ended in some processes and was killed in others "
            "just before; copy the run folder of one that has ended"
        )
    return ended


def data_settings(
    model: keras.Model, train: AugmentedImageSequence, val: AugmentedImageSequence
) -> dict[str, str | int]:
    """What a training works on, the same in every process.

    Beside three numbers, SHA-256 digests: ``films`` (ids and labels), ``pixels``, ``boxes``,
    ``augmenter`` (by the first batch, which depends on the seed alone) and ``network`` (its layers;
    neither weights nor names).
    """
    films = [
        [batches.class_names, batches.image_ids.tolist(), batches.labels.tolist()]
        for batches in (train, val)
    ]
    boxes = keras.tree.map_structure(np.ndarray.tolist, train.boxes)
    layers = [
        [type(layer).__name__, {k: v for k, v in layer.get_config().items() if k not in _FREE}]
        for layer in model.layers
    ]
    augmented, _ = train.batch(0, 0)
    return {
        "batch_size": train.batch_size,
        "seed": train.seed,
        "image_size": train.store.image_size,
        "films": _digest(films),
        "pixels": _digest([part.store.fingerprint(part.image_ids) for part in (train, val)]),
        "boxes": _digest([train.map_size, boxes]),
        "augmenter": _digest([], augmented.tobytes()),
        "network": _digest(layers),
    }


def optimizer_settings(optimizer: keras.optimizers.Optimizer) -> dict:
    """Class and configuration of an optimizer, without the names that Keras counts up."""
    config = optimizer.get_config()
    if "inner_optimizer" in config:  # of LossScaleOptimizer
        config["inner_optimizer"] = optimizer_settings(optimizer.inner_optimizer)
    return {"class_name": type(optimizer).__name__} | {k: config[k] for k in config if k != "name"}


def _digest(facts: list, pixels: bytes = b"") -> str:
    text = json.dumps(facts, sort_keys=True, default=str).encode()
    return hashlib.sha256(text + pixels).hexdigest()


def _check_same(run: Run, there: dict, settings: dict) -> None:
    differing = [name for name in settings if there.get(name) != settings[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{run.folder}: the training there had another {differing}, such as {name} = "
            f"{there.get(name)!r} and not {settings[name]!r}; resume with the same, or start anew: "
            "in another run (RUN of notebook 03), or with resume=False"
        )
