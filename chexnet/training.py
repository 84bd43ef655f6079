"""Warm-up of the head, fine-tuning of everything, and the scores and maps of the best epoch."""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops

from chexnet.callbacks import AurocCallback, EpochLog
from chexnet.cam import class_activation_map
from chexnet.generator import AugmentedImageSequence
from chexnet.images import ImageStore
from chexnet.jpeg import read_jpg
from chexnet.model import (
    load_chexnet,
    map_size,
    set_backbone_trainable,
    warmup_schedule,
    with_location_output,
)
from chexnet.runs import Run

SCHEDULES = ("cosine", "plateau", "constant")


def recipe(weights: str | Path | None) -> dict:
    """The settings that we recommend, by where the weights start.

    Those from random weights were tried on genuine films (README, 'Results on genuine films'): a
    frozen random backbone has nothing to teach a head, so the head has no phase of its own, and
    the peak learning rate is ten times that of fine-tuning. Those from given weights are the
    original's: one epoch for the head, then Adam at 1e-4; they were not tuned here.

    Args:
        weights: what `chexnet.model.weights_in_reach` returned.

    Returns:
        keyword arguments under ``model`` (of `chexnet.model.build_chexnet`), ``augmentation`` (of
        `chexnet.generator.default_augmenter`) and ``training`` (of `train`).
    """
    training = {"box_weight": 1.0, "weight_decay": 0.01, "warmup_epochs": 2}
    if weights is None:
        training |= {"head_epochs": 0, "epochs": 24, "learning_rate": 1e-3}
    else:
        training |= {"head_epochs": 1, "epochs": 12, "learning_rate": 1e-4}
    return {
        "model": {"map_stride": 16},
        "augmentation": {
            "shear": 10.0,
            "shift": 0.08,
            "scale": 0.2,
            "contrast": 0.2,
            "brightness": 0.08,
        },
        "training": training,
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
    box_weight: float = 0.0,
    label_smoothing: float = 0.0,
    best_from: float = 0.6,
    tensorboard: bool = True,
) -> pd.DataFrame:
    """Trains in two phases, keeps the epoch with the best validation AUROC, and logs all of it.

    First ``head_epochs`` with the backbone frozen, then ``epochs`` with every layer free. After
    each epoch the run's ``history.csv`` is written anew, and ``model.keras`` where the AUROC on
    validation (mean over classes) is the best so far. At the end ``model`` holds that epoch.
    Epochs before ``best_from`` are passed over in the end (`chexnet.callbacks.AurocCallback`).

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
        box_weight: weight of the loss that holds each position of the map against the share of
            it inside a radiologist's box; 0 is the plain model.
        label_smoothing: 0 to below 1, as in Keras.
        best_from: share of the second phase after which an epoch may be the best, 0 to below 1.
        tensorboard: write ``<run>/tensorboard`` too.

    Returns:
        one row an epoch: ``epoch, phase, loss, val_loss, val_auroc, saved, learning_rate,
        seconds`` and the parts of the loss; the last epoch with ``saved`` 1 is the one kept.

    Raises:
        ValueError: an argument is outside what is stated above, or validation has a class with
            one value only, is shuffled or is augmented.
        FloatingPointError: the loss is not finite.
    """
    if epochs < 1 or head_epochs < 0 or schedule not in SCHEDULES:
        raise ValueError(
            f"epochs={epochs}, head_epochs={head_epochs}, schedule={schedule!r}: allowed are "
            f"epochs >= 1, head_epochs >= 0 and one of {SCHEDULES}"
        )
    if not 0 <= best_from < 1:
        raise ValueError(f"best_from={best_from}: allowed is 0 <= best_from < 1")
    if box_weight and train.map_size is None:
        raise ValueError(
            f"box_weight={box_weight}, but the training batches carry no boxes: give the sequence "
            "boxes= and map_size=, or set box_weight=0"
        )
    if train.map_size is not None and tuple(train.map_size) != map_size(model):
        raise ValueError(f"map_size={train.map_size}: the model's map has {map_size(model)}")
    trained = with_location_output(model) if train.map_size is not None else model
    losses = _losses(label_smoothing, train.map_size is not None, box_weight)
    warmup_epochs = min(warmup_epochs, epochs - 1)
    log = EpochLog(run)
    first_epoch = head_epochs + int(best_from * epochs)
    callbacks = [AurocCallback(model, val, run, first_epoch=first_epoch), log]
    if tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(run.folder / "tensorboard", write_graph=False))

    if head_epochs:
        set_backbone_trainable(model, False)
        trained.compile(keras.optimizers.Adam(head_learning_rate), **losses)
        log.phase = "head"
        trained.fit(train, epochs=head_epochs, callbacks=callbacks, shuffle=False, verbose=0)
        set_backbone_trainable(model, True)

    rate: float | keras.optimizers.schedules.LearningRateSchedule = learning_rate
    if schedule == "cosine":
        rate = warmup_schedule(
            learning_rate, steps_per_epoch=len(train), epochs=epochs, warmup_epochs=warmup_epochs
        )
    elif schedule == "plateau":
        callbacks += _plateau(learning_rate, head_epochs, warmup_epochs)
    trained.compile(_optimizer(rate, weight_decay), **losses)
    log.phase = "all"
    trained.fit(
        train,
        initial_epoch=head_epochs,
        epochs=head_epochs + epochs,
        callbacks=callbacks,
        shuffle=False,  # the sequence shuffles by its seed; Keras would shuffle the batches again
        verbose=0,
    )
    model.set_weights(load_chexnet(run.folder / "model.keras").get_weights())
    return run.history


def record_scores(
    run: Run,
    model: keras.Model,
    store: ImageStore,
    film_folder: str | Path,
    *,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Scores validation and test, and stores what notebooks 04 and 05 need.

    Writes ``predictions.csv``, ``maps.npz`` and ``films/`` of the run.

    Args:
        run: made with `Run.create`; its ``images`` say which film is in which split.
        model: the trained network.
        store: holds the films of both splits.
        film_folder: where the films lie as ``<image_id>.jpg``, for pictures of the test films.
        batch_size: films at a time.

    Returns:
        ``image_id, split, class_name, y_true, y_score``, one row a film and class.
    """
    images = run.images
    scored = images[images["split"].isin(["val", "test"])].reset_index(drop=True)
    names = run.class_names
    sequence = AugmentedImageSequence(
        store, scored, class_names=names, batch_size=batch_size, shuffle=False, seed=0, workers=1
    )
    scores, maps = class_activation_map(model, sequence, class_index=None)
    predictions = pd.concat(
        [
            pd.DataFrame(
                {
                    "image_id": scored["image_id"],
                    "split": scored["split"],
                    "class_name": name,
                    "y_true": scored[name].astype(int),
                    "y_score": scores[:, index].astype(float),
                }
            )
            for index, name in enumerate(names)
        ],
        ignore_index=True,
    )
    run.write_arrays(
        "maps.npz",
        image_id=scored["image_id"].to_numpy(dtype=str),
        maps=maps.astype(np.float32),
        bias=ops.convert_to_numpy(model.get_layer("predictions").bias),
        class_names=np.array(names),
    )
    for image_id in scored.loc[scored["split"] == "test", "image_id"]:
        run.write_film(image_id, read_jpg(Path(film_folder) / f"{image_id}.jpg"))
    run.write_table("predictions.csv", predictions)  # last: where it stands, the rest is there too
    return predictions


def _losses(label_smoothing: float, with_boxes: bool, box_weight: float) -> Mapping[str, object]:
    scores = keras.losses.BinaryCrossentropy(label_smoothing=label_smoothing)
    if not with_boxes:
        return {"loss": scores}
    return {
        "loss": {
            "predictions": scores,
            "location": keras.losses.BinaryCrossentropy(from_logits=True),
        },
        "loss_weights": {"predictions": 1.0, "location": box_weight},
    }


def _optimizer(
    rate: float | keras.optimizers.schedules.LearningRateSchedule, weight_decay: float
) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    # Decaying a scale or an offset only fights the normalisation that it belongs to.
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias", "scale", "offset"])
    return optimizer


def _plateau(
    learning_rate: float, head_epochs: int, warmup_epochs: int
) -> list[keras.callbacks.Callback]:
    def rise(epoch: int, rate: float) -> float:
        done = epoch - head_epochs + 1
        return learning_rate * done / (warmup_epochs + 1) if done <= warmup_epochs + 1 else rate

    return [
        keras.callbacks.LearningRateScheduler(rise),
        keras.callbacks.ReduceLROnPlateau("val_auroc", mode="max", factor=0.1, patience=3),
    ]
