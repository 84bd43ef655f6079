"""Warm-up of the head, then fine-tuning of everything, in one run that survives interruption."""

import json
import shutil

import keras
import pandas as pd

from chexnet.callbacks import AurocCallback, Checkpoints, EpochLog
from chexnet.checkpoints import Checkpoint, newest_checkpoint
from chexnet.distribution import of_every_process, shared, whole_batch_statistics
from chexnet.filmtable import remove_unfinished
from chexnet.generator import AugmentedImageSequence
from chexnet.losses import compile_losses, score_loss
from chexnet.model import load_chexnet, set_backbone_trainable, with_location_output
from chexnet.optimizers import learning_rates, make_optimizer
from chexnet.runs import Run
from chexnet.training_settings import (
    as_python,
    check_settings,
    fingerprints,
    positive_weights,
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
    ``best_from`` are passed over in the end (`chexnet.callbacks.AurocCallback`).

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
        loss: ``"crossentropy"`` or ``"focal"``, as in `chexnet.losses.score_loss`.
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
    with run.held():
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
