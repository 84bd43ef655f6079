"""The settings that we recommend, and where they come from."""

from pathlib import Path


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
        `chexnet.generator.default_augmenter`) and ``training`` (of `chexnet.training.train`).
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
