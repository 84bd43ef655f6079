"""The optimizer, and its learning rate over the epochs."""

import keras

from chexnet.model import warmup_schedule

SCHEDULES = ("cosine", "plateau", "constant")
_PLATEAU = 3  # epochs without a better AUROC after which the rate falls to a tenth


def make_optimizer(
    rate: float | keras.optimizers.schedules.LearningRateSchedule,
    weight_decay: float,
    *,
    gradient_accumulation: int = 1,
    half: bool = False,
) -> keras.optimizers.Optimizer:
    """AdamW whose decay leaves out what belongs to a normalisation, and biases.

    Args:
        rate: the learning rate.
        weight_decay: of AdamW; 0 is Adam.
        gradient_accumulation: batches whose gradients make one step.
        half: layers compute in float16: the loss is scaled, or small gradients vanish. (Keras does
            so by itself only where the whole network has that policy; our head has not.)
    """
    steps = gradient_accumulation if gradient_accumulation > 1 else None
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=weight_decay, gradient_accumulation_steps=steps
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
