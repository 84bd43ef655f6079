"""What training minimises: cross-entropy or focal loss of the scores, and of the map's places."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

LOSSES = ("crossentropy", "focal")


@keras.saving.register_keras_serializable("chexnet")
class WeightedCrossentropy(keras.losses.Loss):
    """Binary cross-entropy in which a positive film counts ``positive_weight`` times.

    With the weight ``negatives / positives`` both kinds of film weigh the same in all, as in
    CheXNet (Rajpurkar et al. 2017, section 2.1). It moves all scores up: they are then no longer
    the chance of opacity at this prevalence, and calibration has to bring them back.
    """

    def __init__(
        self,
        positive_weight: Sequence[float],
        label_smoothing: float = 0.0,
        name: str = "weighted_crossentropy",
        **kwargs: object,
    ) -> None:
        """Takes one weight a class, above 0."""
        super().__init__(name=name, **kwargs)
        self.positive_weight = [float(weight) for weight in positive_weight]
        self.label_smoothing = label_smoothing

    def call(self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor) -> keras.KerasTensor:
        """Labels and probabilities ``(N, C)`` to one loss a film, ``(N,)``."""
        y_true = ops.cast(y_true, y_pred.dtype)
        weight = ops.convert_to_tensor(self.positive_weight, y_pred.dtype)
        weight = 1 + (weight - 1) * y_true
        smooth = y_true * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        epsilon = keras.config.epsilon()
        y_pred = ops.clip(y_pred, epsilon, 1 - epsilon)
        entropy = -smooth * ops.log(y_pred) - (1 - smooth) * ops.log(1 - y_pred)
        return ops.mean(weight * entropy, axis=-1)

    def get_config(self) -> dict:
        """What it is made from."""
        return super().get_config() | {
            "positive_weight": self.positive_weight,
            "label_smoothing": self.label_smoothing,
        }


def balancing_weights(labels: np.ndarray, class_names: Sequence[str]) -> list[float]:
    """Negatives over positives of each class, from the training split.

    Args:
        labels: ``(N, C)`` of 0 and 1.
        class_names: for the error.

    Raises:
        ValueError: a class has one value only.
    """
    positives = np.asarray(labels).sum(axis=0)
    for name, count in zip(class_names, positives, strict=True):
        if count in (0, len(labels)):
            raise ValueError(
                f"positive_weight='balanced': all {len(labels)} training films have the same {name}"
            )
    return (len(labels) / positives - 1).tolist()


def score_loss(
    kind: str, positive_weight: Sequence[float] | None, label_smoothing: float
) -> keras.losses.Loss:
    """The loss of the scores.

    Args:
        kind: ``"crossentropy"``, or ``"focal"`` (Lin et al. 2017, arXiv:1708.02002, gamma 2).
        positive_weight: of `WeightedCrossentropy`, one a class; ``None`` weighs all films alike.
        label_smoothing: 0 to below 1: labels are pulled that far towards 0.5.

    Raises:
        ValueError: an unknown kind, a weight together with the focal loss, a weight not above 0.
    """
    if kind not in LOSSES or not 0 <= label_smoothing < 1:
        raise ValueError(
            f"loss={kind!r}, label_smoothing={label_smoothing}: allowed are {LOSSES} and "
            "0 <= label_smoothing < 1"
        )
    if positive_weight is None:
        if kind == "focal":
            return keras.losses.BinaryFocalCrossentropy(gamma=2.0, label_smoothing=label_smoothing)
        return keras.losses.BinaryCrossentropy(label_smoothing=label_smoothing)
    if kind == "focal":
        raise ValueError(
            "loss='focal' with a positive_weight: both answer imbalance, choose one of them"
        )
    if not all(0 < weight < math.inf for weight in positive_weight):
        raise ValueError(f"positive_weight={positive_weight}: allowed are numbers above 0")
    return WeightedCrossentropy(positive_weight, label_smoothing)


def compile_losses(scores: keras.losses.Loss, *, box_weight: float | None) -> dict[str, object]:
    """The keyword arguments ``loss`` and ``loss_weights`` of ``compile``.

    Args:
        scores: from `score_loss`.
        box_weight: weight of the places' loss; ``None`` where the network has no such output.
    """
    if box_weight is None:
        return {"loss": scores}
    location = keras.losses.BinaryCrossentropy(from_logits=True)
    return {
        "loss": {"predictions": scores, "location": location},
        "loss_weights": {"predictions": 1.0, "location": box_weight},
    }
