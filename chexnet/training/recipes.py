"""The settings that we recommend: of the model, the augmentation, the optimizer."""

from pathlib import Path

from chexnet.backend import keras
from chexnet.files import check_number
from chexnet.model import warmup_schedule


def recipe(weights: str | Path | None) -> dict:
    """The settings that we recommend, by the weights that training starts from.

    The settings for random weights were tuned on real films (docs/results.md). A frozen random
    backbone teaches a head nothing, so the head is not trained alone, and the peak learning rate
    is ten times that of fine-tuning. For pretrained weights, the epoch for the head and the rate of
    1e-4 are those of the original project; they were not tuned.

    Args:
        weights: what `chexnet.model.weights_in_reach` returned.

    Returns:
        JSON values; keyword arguments under ``model`` (of `chexnet.model.build_chexnet`),
        ``augmentation`` (of `chexnet.generator.default_augmenter`) and ``training`` (of
        `chexnet.training.train`).

    Example:
        >>> from chexnet.training import recipe
        >>> settings = recipe(None)
        >>> settings["model"], settings["training"]["epochs"]
        ({'map_stride': 16}, 24)
    """
    if weights is None:
        training = {"head_epochs": 0, "epochs": 24, "learning_rate": 1e-3}
    else:
        training = {"head_epochs": 1, "epochs": 12, "learning_rate": 1e-4}
    augmentation = dict(shear=10.0, shift=0.08, scale=0.2, contrast=0.2, brightness=0.08)
    return {
        "model": {"map_stride": 16},
        "augmentation": augmentation,
        "training": {"box_weight": 1.0, **training},
    }


def default_optimizer(
    learning_rate: float = 1e-3,
    *,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: int = 2,
    weight_decay: float = 0.01,
    **options: object,
) -> keras.optimizers.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with warm-up and a cosine.

    The learning rate is that of `chexnet.model.warmup_schedule`. Biases and the scales and offsets
    of normalization layers are not decayed.

    Args:
        learning_rate: the peak, above 0.
        steps_per_epoch: batches an epoch, ``len(batches)``.
        epochs: epochs of the schedule, at least 1.
        warmup_epochs: epochs of linear rise; fewer where no epoch would be left for the cosine.
        weight_decay: 0 or above; 0 is Adam.
        **options: of ``keras.optimizers.AdamW``, such as ``use_ema=True`` (the moving average of
            the weights is validated and saved) or ``gradient_accumulation_steps=4``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from chexnet.training import default_optimizer
        >>> optimizer = default_optimizer(steps_per_epoch=10, epochs=24, use_ema=True)
        >>> optimizer.use_ema, round(optimizer.weight_decay, 6)
        (True, 0.01)
    """
    check_number("weight_decay", weight_decay, least=0)
    check_number("epochs", epochs, integer=True, least=1)
    check_number("warmup_epochs", warmup_epochs, integer=True, least=0)
    rise = min(warmup_epochs, epochs - 1)
    schedule = warmup_schedule(
        learning_rate, steps_per_epoch=steps_per_epoch, epochs=epochs, warmup_epochs=rise
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=float(weight_decay), **options)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias", "scale", "offset"])
    return optimizer
