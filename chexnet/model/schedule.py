"""The learning rate over the epochs."""

from chexnet.backend import keras
from chexnet.files import check_number


def warmup_schedule(
    learning_rate: float, *, steps_per_epoch: int, epochs: int, warmup_epochs: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that rises linearly from 1 % to its peak, then falls by a cosine to 1 %.

    Args:
        learning_rate: the peak, above 0.
        steps_per_epoch: batches an epoch, at least 1.
        epochs: epochs of the whole schedule, more than ``warmup_epochs``.
        warmup_epochs: epochs of the rise, 0 or more.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from chexnet.model import warmup_schedule
        >>> rate = warmup_schedule(1e-3, steps_per_epoch=10, epochs=12, warmup_epochs=2)
        >>> [f"{float(rate(step)):.0e}" for step in (0, 20, 120)]
        ['1e-05', '1e-03', '1e-05']
    """
    check_number("learning_rate", learning_rate, above=0)
    check_number("steps_per_epoch", steps_per_epoch, integer=True, least=1)
    check_number("epochs", epochs, integer=True, least=1)
    check_number("warmup_epochs", warmup_epochs, integer=True, least=0, below=epochs)
    peak, lowest = float(learning_rate), 0.01 * float(learning_rate)
    steps, warmup_steps = epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    return keras.optimizers.schedules.CosineDecay(
        # 1. Warm-up: linear from the lowest rate to the peak (without one, the peak at once).
        initial_learning_rate=lowest if warmup_steps else peak,
        warmup_target=peak if warmup_steps else None,
        warmup_steps=int(warmup_steps),
        # 2. Then a cosine from the peak down.
        decay_steps=int(steps - warmup_steps),
        # 3. At the end and after it: this share of the peak.
        alpha=0.01,
    )
