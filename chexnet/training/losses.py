"""Binary cross-entropy over the labels that are known, and with a weight for positive films."""

from collections.abc import Iterable
from typing import Any

from chexnet.backend import keras
from chexnet.files import check_number

ops = keras.ops


@keras.saving.register_keras_serializable("chexnet")
class MaskedCrossentropy(keras.losses.Loss):
    """Binary cross-entropy, mean over the targets that are known: NaN adds nothing.

    Where nothing is missing it is ``keras.losses.BinaryCrossentropy``.

    Example:
        >>> import numpy as np
        >>> from chexnet.training import MaskedCrossentropy
        >>> labels = np.array([[1.0, np.nan], [0.0, np.nan]])
        >>> round(float(MaskedCrossentropy()(labels, np.full((2, 2), 0.5))), 4)  # log(2)
        0.6931
    """

    def __init__(
        self, from_logits: bool = False, name: str = "masked_crossentropy", **kwargs: Any
    ) -> None:
        """Keeps the arguments.

        Args:
            from_logits: whether predictions are logits instead of probabilities.
            name: of the loss.
            **kwargs: of ``keras.losses.Loss``.
        """
        super().__init__(name=name, **kwargs)
        self.from_logits = from_logits

    def call(self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor) -> keras.KerasTensor:
        """Targets 0 to 1 or NaN, and predictions, ``(..., C)``, to losses ``(...)``.

        They are scaled so that their mean is that over all known targets.
        """
        known = ops.logical_not(ops.isnan(y_true))
        losses = self.losses(ops.where(known, y_true, 0), y_pred)
        known = ops.cast(known, losses.dtype)
        scale = ops.sum(ops.ones_like(known)) / ops.maximum(ops.sum(known), 1)
        return ops.mean(losses * known, axis=-1) * scale

    def losses(self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor) -> keras.KerasTensor:
        """The loss of each target; where it is missing, ``y_true`` is 0."""
        return ops.binary_crossentropy(y_true, y_pred, from_logits=self.from_logits)

    def get_config(self) -> dict:
        """The arguments, to make the same loss again."""
        return super().get_config() | {"from_logits": self.from_logits}


@keras.saving.register_keras_serializable("chexnet")
class WeightedCrossentropy(MaskedCrossentropy):
    """`MaskedCrossentropy` in which a positive film counts ``positive_weight`` times.

    With ``negatives / positives`` as weight, both kinds of film have the same total weight, as in
    CheXNet (Rajpurkar et al. 2017, arXiv:1711.05225, section 2.1). The scores rise with the
    weight: calibrate them before you read them as probabilities. Keras' own
    ``BinaryFocalCrossentropy`` has one weight for all classes.

    Example:
        >>> import numpy as np
        >>> from chexnet.training import WeightedCrossentropy
        >>> labels = np.array([[1.0], [0.0], [0.0]])  # of a sequence: batches.labels
        >>> loss = WeightedCrossentropy(1 / np.nanmean(labels, axis=0) - 1)  # negatives / positives
        >>> round(float(loss(labels, np.full((3, 1), 0.5))), 4)  # 4 / 3 of log(2)
        0.9242
    """

    def __init__(
        self,
        positive_weight: Iterable[float],
        label_smoothing: float = 0.0,
        name: str = "weighted_crossentropy",
        **kwargs: Any,
    ) -> None:
        """Checks and keeps the arguments.

        Args:
            positive_weight: for each class a number above 0.
            label_smoothing: 0 to below 1; share by which labels are pulled towards 0.5.
            name: of the loss.
            **kwargs: of `MaskedCrossentropy`.

        Raises:
            ValueError: an argument is out of range. ``negatives / positives`` is so where a class
                has one value only.
        """
        super().__init__(name=name, **kwargs)
        weights = list(positive_weight)
        for weight in weights:
            check_number("positive_weight", weight, above=0)
        check_number("label_smoothing", label_smoothing, least=0, below=1)
        self.positive_weight = [float(weight) for weight in weights]
        self.label_smoothing = float(label_smoothing)

    def losses(self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor) -> keras.KerasTensor:
        """The weighted loss of each label ``(N, C)``."""
        y_true = ops.cast(y_true, y_pred.dtype)
        weight = 1 + (ops.convert_to_tensor(self.positive_weight, y_pred.dtype) - 1) * y_true
        smooth = y_true * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return weight * super().losses(smooth, y_pred)

    def get_config(self) -> dict:
        """The arguments, to make the same loss again."""
        own = {"positive_weight": self.positive_weight, "label_smoothing": self.label_smoothing}
        return super().get_config() | own
