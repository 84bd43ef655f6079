"""Warm-up of the head, then fine-tuning of everything, in one run that survives interruption.

The optimizer, its learning rate over the epochs, and the running mean of the weights.

What a training is asked for: checked before anything is touched, and told from another's.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from numbers import Integral

import keras
import numpy as np
import pandas as pd

from chexnet.files import remove_unfinished
from chexnet.generator import AugmentedImageSequence
from chexnet.model import (
    load_chexnet,
    map_size,
    set_backbone_trainable,
    warmup_schedule,
    with_location_output,
)
from chexnet.runs import Run
from chexnet.training.callbacks import (
    AurocCallback,
    Checkpoint,
    Checkpoints,
    EpochLog,
    newest_checkpoint,
)
from chexnet.training.distribution import (
    devices_and_process,
    of_every_process,
    shared,
    whole_batch_statistics,
)
from chexnet.training.losses import balancing_weights, compile_losses, score_loss

SCHEDULES = ("cosine", "plateau", "constant")
_PLATEAU = 3  # epochs without a better AUROC after which the rate falls to a tenth


def make_optimizer(
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    weight_decay: float,
    *,
    gradient_accumulation: int = 1,
    weight_average: float = 0.0,
    half: bool = False,
) -> keras.optimizers.Optimizer:
    """AdamW whose decay leaves out what belongs to a normalisation, and biases.

    Args:
        rate: the learning rate.
        weight_decay: of AdamW; 0 is Adam.
        gradient_accumulation: batches whose gradients make one step.
        weight_average: of `chexnet.training.train`.
        half: layers compute in float16: the loss is scaled, or small gradients vanish. (Keras does
            so by itself only where the whole network has that policy; our head has not.)
    """
    steps = gradient_accumulation if gradient_accumulation > 1 else None
    optimizer = keras.optimizers.AdamW(
        rate,
        weight_decay=weight_decay,
        gradient_accumulation_steps=steps,
        use_ema=weight_average > 0,
        ema_momentum=weight_average,
    )
    # Decaying a scale or an offset only fights the normalisation that it belongs to.
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias", "scale", "offset"])
    return keras.optimizers.LossScaleOptimizer(optimizer) if half else optimizer


def learning_rates(
    schedule: str,
    peak: float,
    *,
    first_epoch: int,
    epochs: int,
    warmup_epochs: int,
    steps_per_epoch: int,
    history: list[dict],
) -> tuple[float | keras.optimizers.schedules.LearningRateSchedule, list[keras.callbacks.Callback]]:
    """The optimizer's rate, and what changes it between epochs.

    Args:
        schedule: one of `SCHEDULES`, as `chexnet.training.train` explains them.
        peak: the highest rate.
        first_epoch: of this phase, from 0.
        epochs: of this phase.
        warmup_epochs: of linear rise.
        steps_per_epoch: batches an epoch.
        history: the rows so far; the list that grows in training.
    """
    if schedule == "cosine":
        rate = warmup_schedule(
            peak, steps_per_epoch=steps_per_epoch, epochs=epochs, warmup_epochs=warmup_epochs
        )
        return rate, []
    if schedule == "constant":
        return peak, []

    def at(epoch: int) -> float:
        # From the history alone, so that a resumed training knows it too, as Keras'
        # ReduceLROnPlateau would not.
        share = min(1.0, (epoch - first_epoch + 1) / (warmup_epochs + 1))
        best, waited = float("-inf"), 0
        for row in history[first_epoch:]:
            waited = 0 if row["val_auroc"] > best else waited + 1
            best = max(best, row["val_auroc"])
            if waited == _PLATEAU:
                share, waited = share / 10, 0
        return peak * share

    return peak, [keras.callbacks.LearningRateScheduler(at)]


def as_python(settings: dict) -> dict:
    """The settings with NumPy's scalars as Python's, which can be written as JSON."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in settings.items()
    }


def check_settings(
    settings: dict,
    model: keras.Model,
    train: AugmentedImageSequence,
    val: AugmentedImageSequence,
) -> None:
    """Refuses what `chexnet.training.train` cannot work with.

    Args:
        settings: its keyword arguments.
        model: what is trained.
        train: batches of the training split.
        val: batches of the validation split.

    Raises:
        ValueError: an argument is outside what is allowed, or two do not go together.
    """
    for name, (is_allowed, allowed) in _ALLOWED.items():
        if not is_allowed(settings[name]):
            raise ValueError(f"{name}={settings[name]!r}: allowed is {allowed}")
    devices, processes, _ = devices_and_process()
    accumulation, minutes = settings["gradient_accumulation"], settings["max_minutes"]
    if minutes is not None and processes > 1:
        raise ValueError(
            f"max_minutes={minutes} with {processes} processes: each has a clock of its own, and "
            "one that ends alone leaves the others waiting; set epochs for the time instead"
        )
    if accumulation > 1 and devices > 1 and keras.backend.backend() == "tensorflow":
        raise ValueError(
            f"gradient_accumulation={accumulation} on {devices} devices: TensorFlow's "
            "MirroredStrategy cannot do both; set gradient_accumulation=1 or train on one device"
        )
    if train.class_names != val.class_names:
        raise ValueError(
            f"train has class_names={train.class_names}, val has {val.class_names}: allowed are "
            "the same in the same order"
        )
    if model.output_shape[-1] != len(train.class_names):
        raise ValueError(
            f"class_names={train.class_names}: the model's head has {model.output_shape[-1]} scores"
        )
    if settings["box_weight"] and train.map_size is None:
        raise ValueError(
            f"box_weight={settings['box_weight']}, but the training batches carry no boxes: give "
            "the sequence boxes= and map_size=, or set box_weight=0"
        )
    if train.map_size is not None and tuple(train.map_size) != map_size(model):
        raise ValueError(f"map_size={train.map_size}: the model's map has {map_size(model)}")


def positive_weights(
    given: float | str | None, train: AugmentedImageSequence
) -> list[float] | None:
    """One weight a class, as `chexnet.training.losses.score_loss` takes them."""
    if given == "balanced":
        return balancing_weights(train.labels, train.class_names)
    if given is None or isinstance(given, int | float):
        return None if given is None else [given] * len(train.class_names)
    raise ValueError(f"positive_weight={given!r}: allowed are a number, 'balanced' or None")


def fingerprints(
    model: keras.Model, train: AugmentedImageSequence, val: AugmentedImageSequence
) -> dict[str, str | int]:
    """What a training works on, in a form that is the same in every process.

    Returns:
        digests: ``films`` (ids, labels, and the pixels of the first, which show how all were
        prepared), ``boxes``, ``augmenter`` (by the first batch, which depends on the seed alone)
        and ``network`` (its layers, neither weights nor names, which count up in a session); and
        ``image_size``.
    """
    films = [
        [batches.class_names, batches.image_ids.tolist(), batches.labels.tolist()]
        for batches in (train, val)
    ]
    boxes = {image_id: its_boxes.tolist() for image_id, its_boxes in train._boxes.items()}
    layers = [
        [type(layer).__name__, {k: v for k, v in layer.get_config().items() if k not in _FREE}]
        for layer in _layers(model)
    ]
    augmented, _ = train.batch(0, 0)
    return {
        "films": _digest(films, train.store[train.image_ids[:1]]),
        "image_size": train.store.image_size,
        "boxes": _digest([train.map_size, boxes]),
        "augmenter": _digest([], augmented),
        "network": _digest(layers),
    }


def _layers(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


def _digest(facts: list, pixels: np.ndarray | None = None) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    if pixels is not None:
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def _whole(least: int, value: object) -> bool:
    return isinstance(value, Integral) and value >= least


_FREE = ("name", "trainable")  # of a layer: the first counts up, the second changes with the phase
_SHARE = (lambda value: 0 <= value < 1, "0 to below 1")
_FROM_ZERO = (lambda value: 0 <= value < math.inf, "a number from 0")
_ABOVE_ZERO = (lambda value: 0 < value < math.inf, "a number above 0")
_WHOLE_FROM_ZERO = (lambda value: _whole(0, value), "a whole number from 0")
_WHOLE_FROM_ONE = (lambda value: _whole(1, value), "a whole number from 1")
_ALLOWED = {
    "epochs": _WHOLE_FROM_ONE,
    "head_epochs": _WHOLE_FROM_ZERO,
    "learning_rate": _ABOVE_ZERO,
    "head_learning_rate": _ABOVE_ZERO,
    "warmup_epochs": _WHOLE_FROM_ZERO,
    "schedule": (lambda value: value in SCHEDULES, f"one of {SCHEDULES}"),
    "weight_decay": _FROM_ZERO,
    "weight_average": _SHARE,
    "box_weight": _FROM_ZERO,
    "best_from": _SHARE,
    "patience": (lambda value: value is None or _whole(1, value), "a whole number from 1 or None"),
    "max_minutes": (lambda value: value is None or value > 0, "a number above 0 or None"),
    "gradient_accumulation": _WHOLE_FROM_ONE,
}


def train(
    model: keras.Model,
    train: AugmentedImageSequence,
    val: AugmentedImageSequence,
    run: Run,
    *,
    epochs: int,
    head_epochs: int = 0,
    learning_rate: float = 1e-3,
    head_learning_rate: float = 1e-3,
    warmup_epochs: int = 2,
    schedule: str = "cosine",
    weight_decay: float = 0.01,
    weight_average: float = 0.0,
    box_weight: float = 0.0,
    loss: str = "crossentropy",
    positive_weight: float | str | None = None,
    label_smoothing: float = 0.0,
    best_from: float = 0.6,
    patience: int | None = None,
    max_minutes: float | None = None,
    gradient_accumulation: int = 1,
    jit_compile: bool | str = "auto",
    tensorboard: bool = True,
    resume: bool = False,
) -> pd.DataFrame:
    """Trains in two phases, keeps the epoch with the best validation AUROC, and logs all of it.

    First ``head_epochs`` with the backbone frozen, then ``epochs`` with every layer free. After
    each epoch the run's ``history.csv`` and a checkpoint are written anew, and ``model.keras``
    where the AUROC on validation (mean over classes) is the best so far. At the end ``model`` holds
    that epoch, ``training.json`` says why it ended, and the checkpoints go. Epochs before
    ``best_from`` are passed over in the end (`chexnet.training.callbacks.AurocCallback`).

    Args:
        model: from `chexnet.model.build_chexnet`; trained in place.
        train: batches of the training split, with box masks where ``box_weight`` is above 0.
        val: batches of the validation split, unshuffled and not augmented.
        run: where everything is written.
        epochs: epochs with all layers free, at least 1.
        head_epochs: epochs with the backbone frozen.
        learning_rate: peak of the second phase.
        head_learning_rate: constant rate of the first phase.
        warmup_epochs: epochs of linear rise in the second phase, none where the rate is constant;
            fewer where that leaves none.
        schedule: ``"cosine"``; ``"plateau"``: a tenth after 3 epochs without a better AUROC; or
            ``"constant"``.
        weight_decay: of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); 0 is Adam.
        weight_average: share of the running mean of the weights that a batch of the second phase
            keeps, 0 to below 1. The mean is what is validated and saved (Polyak and Juditsky 1992,
            doi:10.1137/0330046); 0 is the weights themselves.
        box_weight: weight of the loss that holds each position of the map against the share of
            it inside a radiologist's box; 0 is the plain model. The boxes teach class 0 alone.
        loss: ``"crossentropy"`` or ``"focal"``, as in `chexnet.training.losses.score_loss`.
        positive_weight: how often a positive film counts, a number above 0, or ``"balanced"``:
            negatives over positives of each class in the training split; ``None`` is once.
        label_smoothing: 0 to below 1, as in Keras.
        best_from: share of the second phase after which an epoch may be the best, 0 to below 1.
        patience: epochs without a better AUROC, counted from there, after which training ends.
        max_minutes: training ends before an epoch would pass this, earlier sessions counted in;
            for one process only.
            The learning rate has then not come down: plan the epochs for the time instead.
        gradient_accumulation: batches whose gradients make one step of the optimizer.
        jit_compile: of ``keras.Model.compile``.
        tensorboard: write ``<run>/tensorboard`` too.
        resume: go on where an interrupted training of this run, with the same settings, broke off.
            On the CPU the outcome is that of an unbroken one.

    Returns:
        one row an epoch: ``epoch, phase, loss, val_loss, val_auroc, saved, learning_rate,
        seconds`` and the parts of the loss; the last epoch with ``saved`` 1 is the one kept.

    Raises:
        ValueError: an argument is outside what is stated above, validation has other classes or
            a class with one value only, is shuffled or is augmented, or what is to be resumed had
            other settings, films, boxes, augmentation or layers.
        FloatingPointError: the loss or a score is not finite; the films of the batch are named.
        BlockingIOError: another process is training into this run.
    """
    given = as_python(locals())
    check_settings(given, model, train, val)
    # Keras takes no other kind of number for these.
    learning_rate, head_learning_rate = given["learning_rate"], given["head_learning_rate"]
    settings = {
        name: value
        for name, value in given.items()
        if name not in ("model", "train", "val", "run", "resume", "max_minutes", "tensorboard")
    }
    settings |= as_python({"batch_size": train.batch_size, "seed": train.seed})
    settings |= fingerprints(model, train, val)
    with_boxes = train.map_size is not None
    weights = positive_weights(given["positive_weight"], train)
    losses = compile_losses(
        score_loss(loss, weights, label_smoothing), box_weight=box_weight if with_boxes else None
    )
    trained = with_location_output(model) if with_boxes else model
    variables = trained.variables  # before compile, which adds those of the metrics
    first_best = head_epochs + int(best_from * epochs)
    scores = AurocCallback(
        model, val, run, first_epoch=first_best, patience=patience, batches=train
    )
    with run.lock():
        for folder in (run.folder, run.folder / "checkpoints"):
            remove_unfinished(folder)
        if resume and _has_ended(run, settings):
            model.set_weights(load_chexnet(run.folder / "model.keras").get_weights())
            return run.history
        state = _to_resume(run, settings) if resume else _forget(run)
        done, stopped = (state.epoch, state.stopped) if state else (0, None)
        if state:
            state.restore(variables, state.network)
            scores.remember(state.history)
        log = EpochLog(run, train, history=state and state.history, max_minutes=max_minutes)
        callbacks = [scores, log]
        if tensorboard:
            board = run.folder / "tensorboard"
            callbacks.append(keras.callbacks.TensorBoard(board, write_graph=False))
        callbacks.append(Checkpoints(run, log, variables, settings, lambda: scores.stopped))
        stopped = stopped or log.stopped
        for phase, first, last in (
            ("head", 0, head_epochs),
            ("all", head_epochs, head_epochs + epochs),
        ):
            if done >= last or stopped:
                continue
            log.phase = phase
            set_backbone_trainable(model, phase == "all")
            rate, decay, average, at_each_epoch = head_learning_rate, 0.0, 0.0, []
            if phase == "all":
                decay, average = weight_decay, weight_average
                warmup = min(warmup_epochs, epochs - 1)
                rate, at_each_epoch = learning_rates(
                    schedule,
                    learning_rate,
                    first_epoch=head_epochs,
                    epochs=epochs,
                    warmup_epochs=warmup,
                    steps_per_epoch=len(train),
                    history=log.rows,
                )
            trained.compile(
                make_optimizer(
                    rate,
                    decay,
                    gradient_accumulation=gradient_accumulation,
                    weight_average=average,
                    half=model.get_layer("relu").compute_dtype == "float16",
                ),
                jit_compile=jit_compile,
                **losses,
            )
            if state and state.phase == phase:
                trained.optimizer.build(trained.trainable_variables)
                state.restore(trained.optimizer.variables, state.optimizer)
            with whole_batch_statistics(trained):
                trained.fit(
                    shared(train),
                    initial_epoch=max(first, done),
                    epochs=last,
                    callbacks=[*at_each_epoch, *callbacks],
                    shuffle=False,  # the sequence shuffles by its seed; Keras would shuffle batches
                    verbose=0,
                )
            stopped = scores.stopped or log.stopped
        set_backbone_trainable(model, True)
        model.set_weights(load_chexnet(run.folder / "model.keras").get_weights())
        ended = log.stopped or stopped or "all epochs done"
        _conclude(run, settings, ended, may_go_on=log.stopped is not None)
    return run.history


def _to_resume(run: Run, settings: dict) -> Checkpoint | None:
    folder = run.folder / "checkpoints"
    state = newest_checkpoint(folder)
    if state is not None:
        _check_same(run, state.settings, settings)
    # Killed at the end of an epoch, one process may have written its checkpoint and another not.
    while len(reached := set(of_every_process(state.epoch if state else 0))) > 1:
        state = newest_checkpoint(folder, up_to=min(reached))
    return state or _forget(run)


def _has_ended(run: Run, settings: dict) -> bool:
    record = run.folder / "training.json"
    # What still has checkpoints can go on.
    ended = record.is_file() and not any(run.folder.glob("checkpoints/*.npz"))
    if ended:
        _check_same(run, json.loads(record.read_text())["settings"], settings)
    if len(set(of_every_process(ended))) > 1:
        raise ValueError(
            f"{run.folder}: this training has ended in some processes and was killed in others "
            "just before; what those that have ended left is whole, take it from there"
        )
    return ended


def _check_same(run: Run, there: dict, settings: dict) -> None:
    differing = [name for name in settings if there.get(name) != settings[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{run.folder}: the training there had another {differing}, such as {name} = "
            f"{there.get(name)!r} and not {settings[name]!r}; resume with the same, or give "
            "resume=False"
        )


def _forget(run: Run) -> None:
    (run.folder / "training.json").unlink(missing_ok=True)
    if (run.folder / "checkpoints").exists():
        shutil.rmtree(run.folder / "checkpoints")


def _conclude(run: Run, settings: dict, ended: str, *, may_go_on: bool) -> None:
    run.write_json("training.json", {"ended": ended, "settings": settings})
    if not may_go_on:  # with a later ceiling on time
        shutil.rmtree(run.folder / "checkpoints")
