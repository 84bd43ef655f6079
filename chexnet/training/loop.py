"""Training of the head, then fine-tuning of all layers, in one run that survives interruption."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from chexnet.backend import keras
from chexnet.files import check_number
from chexnet.generator import AugmentedImageSequence
from chexnet.model import load_chexnet, map_size, with_location_output
from chexnet.runs import Run
from chexnet.training.callbacks import AurocCallback, Checkpoints, EpochLog, assign
from chexnet.training.distribution import devices_and_process, shard, whole_batch_statistics
from chexnet.training.losses import MaskedCrossentropy
from chexnet.training.progress import clean_stop, loaded_line, print_rows
from chexnet.training.recipes import default_optimizer
from chexnet.training.resume import (
    checkpoint_to_resume,
    data_settings,
    has_ended,
    optimizer_settings,
)


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
    optimizer: keras.optimizers.Optimizer | str | dict | None = None,
    loss: keras.losses.Loss | str | dict | None = None,
    box_weight: float = 0.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    best_from: float = 0.6,
    max_minutes: float | None = None,
    resume: bool = False,
) -> pd.DataFrame:
    """Trains in two phases, keeps the epoch with the best validation AUROC, and records each epoch.

    After each epoch ``history.csv`` and a checkpoint are written, and ``model.keras`` if the AUROC
    on validation (mean over classes) is the best so far. At the end ``model`` has the weights of
    the best epoch, ``training.json`` says why training ended and which classes had a location loss,
    and the checkpoints are removed. A missing label adds nothing to losses and AUROC.

    Args:
        model: from `chexnet.model.build_chexnet`; trained in place. ``model.jit_compile``, where
            it was set, is used.
        train: batches of the training split, with box masks if ``box_weight`` is above 0.
        val: batches of the validation split, neither shuffled nor augmented.
        run: the run folder.
        epochs: epochs with all layers, at least 1.
        head_epochs: epochs before these with the backbone frozen, 0 or above.
        learning_rate: peak rate of the default optimizer, above 0; not used with ``optimizer``.
        head_learning_rate: rate of Adam in the first phase, above 0.
        optimizer: of the second phase, not used before; None is `default_optimizer`. With
            ``use_ema`` the average of the weights is validated and saved.
        loss: of the scores, as for ``keras.Model.compile``; None is `MaskedCrossentropy`. Losses
            of Keras do not take missing labels.
        box_weight: weight of a second loss, 0 or above: cross-entropy between each position of
            a class's map and the share of it that is inside a radiologist's box. It uses films
            with a box of the class and, if there are any, films without the class.
        callbacks: of Keras, such as ``EarlyStopping(monitor="val_auroc", mode="max")``; in both
            phases, epochs counted over both. One that sets ``stop_training`` ends the training.
        best_from: share of the second phase, 0 to below 1. Epochs before it are not kept in the
            end: while the learning rate is high, one can be best by chance.
        max_minutes: training ends before an epoch would pass this time, above 0, earlier sessions
            included; for one process only. With more time it can be resumed. The learning rate
            has not come down by then, so prefer fewer ``epochs``.
        resume: go on after the last epoch of an interrupted training of this run with the same
            settings and data, or load the network of one that has ended. On the CPU the result is
            that of a training without interruption; ``EarlyStopping`` and ``ReduceLROnPlateau`` go
            on too.

    Returns:
        one row an epoch: ``epoch, phase, loss, val_loss, val_auroc, saved, learning_rate,
        seconds`` and the parts of the loss; the last epoch with ``saved`` 1 is the one kept.

    Raises:
        ValueError: an argument is out of range, arguments contradict each other, validation has
            no class with both labels, a loss of Keras is given and labels are missing, or the
            training to resume had other settings or data.
        FloatingPointError: the loss or a score is not finite; the films of the batch are named.
        BlockingIOError: another process is training in the run folder or scoring it.
        KeyboardInterrupt: the stop button or Ctrl-C; the message says which epochs are kept.

    Example:
        >>> import keras
        >>> from chexnet.files import read_table
        >>> from chexnet.generator import AugmentedImageSequence, ImageStore
        >>> from chexnet.runs import Run
        >>> from chexnet.training import train
        >>> images, boxes = (read_table(f"data/phantom/{name}.csv") for name in ("images", "boxes"))
        >>> store = ImageStore("data/phantom/jpg", images["image_id"], image_size=32)
        >>> options = {"class_names": ("Pneumonia",), "batch_size": 24}
        >>> parts = dict(iter(images.groupby("split")))
        >>> batches = AugmentedImageSequence(store, parts["train"], shuffle=True, **options)
        >>> validation = AugmentedImageSequence(store, parts["val"], shuffle=False, **options)
        >>> run = Run.create("output/small", settings=options, images=images, boxes=boxes)
        >>> film = keras.Input((32, 32, 1))  # a small network; yours is build_chexnet(...)
        >>> x = keras.layers.Conv2D(4, 3, activation="relu", name="relu")(film)
        >>> x = keras.layers.GlobalAveragePooling2D()(x)
        >>> x = keras.layers.Dense(1, activation="sigmoid", name="predictions")(x)
        >>> model = keras.Model(film, x)
        >>> history = train(model, batches, validation, run, epochs=1)
        Training, all layers: graph built in ...
        >>> history[["epoch", "phase", "saved"]].values.tolist()
        [[1, 'all', 1]]
    """
    # Arguments. Nothing in the run folder is touched before they are all checked.
    check_number("epochs", epochs, integer=True, least=1)
    check_number("head_epochs", head_epochs, integer=True, least=0)
    check_number("learning_rate", learning_rate, above=0)
    check_number("head_learning_rate", head_learning_rate, above=0)
    check_number("box_weight", box_weight, least=0)
    check_number("best_from", best_from, least=0, below=1)
    if max_minutes is not None:
        check_number("max_minutes", max_minutes, above=0)
    given = keras.optimizers.get(optimizer) if optimizer is not None else None
    loss = keras.losses.get(loss) if loss is not None else MaskedCrossentropy()
    _check_data(model, train, val, box_weight=box_weight)
    _check_loss(loss, train)
    _check_devices(given, max_minutes)
    settings = {
        "epochs": epochs,
        "head_epochs": head_epochs,
        "learning_rate": learning_rate,
        "head_learning_rate": head_learning_rate,
        "optimizer": given and optimizer_settings(given),
        "loss": keras.losses.serialize(loss),
        "box_weight": box_weight,
        "best_from": best_from,
    } | data_settings(model, train, val)
    # As they are read from a checkpoint: no tuples, no NumPy scalars.
    settings = json.loads(json.dumps(settings, default=np.generic.item))

    # Optimizers of the two phases.
    optimizers = {
        "head": keras.optimizers.Adam(float(head_learning_rate)),
        "all": given or default_optimizer(learning_rate, steps_per_epoch=len(train), epochs=epochs),
    }
    if model.get_layer("relu").compute_dtype == "float16":
        # Without scaling of the loss, small gradients vanish. Keras does so by itself only where
        # the whole network has that precision; our head has not.
        scaling = keras.optimizers.LossScaleOptimizer
        for phase, one in optimizers.items():
            optimizers[phase] = one if isinstance(one, scaling) else scaling(one)

    # Network and loss: with boxes a second output, the map, has a loss of its own.
    if not train.boxes:
        trained = keras.Model(model.input, model.output)
        losses = {"loss": loss}
    else:
        trained = with_location_output(model)
        location = MaskedCrossentropy(from_logits=True)
        losses = {
            "loss": {"predictions": loss, "location": location},
            "loss_weights": {"predictions": 1.0, "location": float(box_weight)},
        }

    variables = trained.variables  # before compile, which adds those of the metrics
    first_best = head_epochs + int(best_from * epochs)
    scores = AurocCallback(model, val, run, train, first_epoch=first_best)

    with run.lock(), clean_stop(run, variables, resume=resume):
        # Where to start: at the end, at a checkpoint, or at epoch 0.
        checkpoints = run.folder / "checkpoints"
        run.remove_unfinished()
        if resume and has_ended(run, settings):
            model.set_weights(load_chexnet(run.folder / "model.keras").get_weights())
            print(loaded_line(run))
            return run.history
        run.set_results_aside()  # of the network that is now trained further or replaced
        state = checkpoint_to_resume(run, settings) if resume else None
        if state is None:
            (run.folder / "training.json").unlink(missing_ok=True)
            shutil.rmtree(checkpoints, ignore_errors=True)
        else:
            assign(variables, state.network)  # the optimizer follows when it is built
            scores.recall(state.history)
            print_rows(state.history)
        log = EpochLog(run, train, list(state.history) if state else [], max_minutes)
        saved = Checkpoints(log, variables, settings, state, callbacks)
        stopped = log.out_of_time or (state is not None and state.stopped)

        # The two phases.
        for phase, last in (("head", head_epochs), ("all", head_epochs + epochs)):
            if len(log.rows) >= last or stopped:
                continue
            log.phase = phase
            _set_backbone_trainable(model, phase == "all")
            trained.compile(optimizers[phase], jit_compile=model.jit_compile, **losses)
            with whole_batch_statistics(trained), contextlib.closing(log):
                trained.fit(
                    shard(train),
                    initial_epoch=len(log.rows),
                    epochs=last,
                    callbacks=[scores, log, *callbacks, saved],
                    shuffle=False,  # the sequence shuffles by its seed; Keras would shuffle batches
                    verbose=0,
                )
            stopped = trained.stop_training

        # The end: the best epoch's network, and why training ended.
        _set_backbone_trainable(model, True)
        model.set_weights(load_chexnet(run.folder / "model.keras").get_weights())
        if len(log.rows) == head_epochs + epochs:
            ended = "all epochs done"
        elif log.out_of_time:
            ended = f"max_minutes={max_minutes} reached"
        else:
            ended = f"a callback stopped it after epoch {len(log.rows)}"
        record = {"ended": ended, "location_loss": _location_loss(train, box_weight)}
        run.write_json("training.json", record | {"settings": settings})
        if not ended.startswith("max_minutes"):  # with more time it can go on
            shutil.rmtree(checkpoints)
    return run.history


def _set_backbone_trainable(model: keras.Model, trainable: bool) -> None:
    # A frozen BatchNormalization does not update its statistics and uses them in training too.
    for layer in model.layers:
        if layer.name != "predictions":
            layer.trainable = trainable


def _check_data(
    model: keras.Model,
    train: AugmentedImageSequence,
    val: AugmentedImageSequence,
    *,
    box_weight: float,
) -> None:
    if train.class_names != val.class_names:
        raise ValueError(
            f"train has class_names={train.class_names}, val has {val.class_names}: expected the "
            "same in the same order"
        )
    if model.output_shape[-1] != len(train.class_names):
        raise ValueError(
            f"class_names={train.class_names}: the model's head has {model.output_shape[-1]} scores"
        )
    if box_weight and train.map_size is None:
        raise ValueError(
            f"box_weight={box_weight}, but the training batches have no boxes: give the sequence "
            "boxes= and map_size=, or set box_weight=0"
        )
    if train.map_size is not None and tuple(train.map_size) != map_size(model):
        raise ValueError(f"map_size={train.map_size}: the model's map has {map_size(model)}")


def _check_loss(loss: Any, train: AugmentedImageSequence) -> None:
    missing = np.isnan(train.labels).sum(axis=0)
    if missing.any() and loss.__module__.startswith("keras."):
        named = [f"{name} ({n})" for name, n in zip(train.class_names, missing, strict=True) if n]
        raise ValueError(
            f"loss={keras.losses.serialize(loss)}: a loss of Keras does not take missing labels, "
            f"and training films have some of {', '.join(named)}; expected MaskedCrossentropy or "
            "WeightedCrossentropy"
        )


def _location_loss(train: AugmentedImageSequence, box_weight: float) -> str:
    """One sentence for ``training.json``: which classes have a location loss, on which films."""
    if not box_weight:
        return "No location loss: box_weight is 0."
    if not train.boxes:
        return "No location loss: no positive training film has a box."
    absent = (train.labels == 0).sum(axis=0)
    parts = [
        f"{name} on {len(train.boxes[name])} films with boxes and {n} without the finding"
        for name, n in zip(train.class_names, absent, strict=True)
        if name in train.boxes
    ]
    others = [name for name in train.class_names if name not in train.boxes]
    none = f"; none for {', '.join(others)} (no boxes)" if others else ""
    return f"Location loss: {', '.join(parts)}{none}."


def _check_devices(optimizer: keras.optimizers.Optimizer | None, max_minutes: float | None) -> None:
    devices, processes, _ = devices_and_process()
    if max_minutes is not None and processes > 1:
        raise ValueError(
            f"max_minutes={max_minutes} with {processes} processes: each has a clock of its own, "
            "and one that ends alone leaves the others waiting; choose epochs for the time instead"
        )
    if optimizer is None:
        return
    if optimizer.built:
        raise ValueError(f"optimizer={optimizer.name}: expected a new one, it was used before")
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    steps = optimizer.gradient_accumulation_steps or 1
    if steps > 1 and devices > 1 and keras.backend.backend() == "tensorflow":
        raise ValueError(
            f"gradient_accumulation_steps={steps} on {devices} devices: TensorFlow's "
            "MirroredStrategy cannot do both; leave it out or train on one device"
        )
