"""The optimizer, its learning rate over the epochs, and the running mean of the weights."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from chexnet.model import warmup_schedule

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
