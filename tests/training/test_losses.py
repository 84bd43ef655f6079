import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from chexnet.training import MaskedCrossentropy, WeightedCrossentropy

LABELS = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
SCORES = np.array([[0.8, 0.3], [0.4, 0.1], [0.2, 0.9], [0.5, 0.6]], np.float32)


def value(loss):
    return float(ops.convert_to_numpy(loss(LABELS, SCORES)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_with_weight_1_it_is_keras_cross_entropy(smoothing):
    keras_own = keras.losses.BinaryCrossentropy(label_smoothing=smoothing)
    ours = WeightedCrossentropy([1, 1], label_smoothing=smoothing)
    assert value(ours) == pytest.approx(value(keras_own), rel=1e-5)


def test_a_positive_film_counts_its_weight():
    entropy = -np.log(np.where(LABELS == 1, SCORES, 1 - SCORES))
    by_hand = np.mean(entropy * np.where(LABELS == 1, [[3.0, 0.5]], 1))
    assert value(WeightedCrossentropy([3, 0.5])) == pytest.approx(by_hand, rel=1e-5)


def test_weights_by_prevalence():
    """Negatives over positives gives both kinds the same weight."""
    loss = WeightedCrossentropy(1 / LABELS.mean(axis=0) - 1)
    assert loss.positive_weight == [3.0, 1.0]
    total = np.where(LABELS == 1, [loss.positive_weight], 1)
    for column, labels in zip(total.T, LABELS.T, strict=True):
        assert column[labels == 1].sum() == column[labels == 0].sum()


def test_a_missing_label_adds_nothing_worked_by_hand():
    labels = np.array([[1, 0], [0, np.nan], [np.nan, np.nan]], np.float32)
    scores = np.array([[0.5, 0.2], [0.4, 0.9], [0.7, 0.1]], np.float32)
    by_hand = [-np.log(0.5), -np.log(1 - 0.2), -np.log(1 - 0.4)]
    for loss, weights in (
        (MaskedCrossentropy(), [1, 1, 1]),
        (WeightedCrossentropy([3, 1]), [3, 1, 1]),
    ):
        expected = np.dot(by_hand, weights) / 3
        assert float(loss(labels, scores)) == pytest.approx(expected, rel=1e-5)
    logits = np.log(scores / (1 - scores))
    from_logits = MaskedCrossentropy(from_logits=True)
    assert float(from_logits(labels, logits)) == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert float(MaskedCrossentropy()(labels[2:], scores[2:])) == 0


def test_the_gradient_of_a_missing_label_is_zero():
    kernel = keras.Variable(np.zeros((1, 2), np.float32))
    labels = np.array([[1, np.nan]], np.float32)
    with tf.GradientTape() as tape:
        scores = ops.sigmoid(ops.matmul(np.ones((1, 1), np.float32), kernel))
        value = MaskedCrossentropy()(labels, scores)
    assert tape.gradient(value, kernel.value).numpy().tolist() == [[-0.5, 0.0]]


def test_nothing_missing_is_keras():
    """Where nothing is missing, it is Keras' own loss to the last bit."""
    assert value(MaskedCrossentropy()) == value(keras.losses.BinaryCrossentropy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0],), "positive_weight=0.0: expected a number > 0"),
        (([2.0, float("inf")],), "positive_weight=inf: expected"),
        (([float("nan")],), "positive_weight=nan: expected"),
        (("2",), "positive_weight='2': expected"),
        (([2.0], 1.0), "label_smoothing=1.0: expected a number >= 0 and < 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightedCrossentropy(*arguments)


def test_it_comes_back_from_its_config():
    loss = WeightedCrossentropy([2.0, 3.0], 0.1)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert value(again) == value(loss)
