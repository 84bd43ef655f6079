import keras
import numpy as np
import pytest
from keras import ops

from chexnet.training import WeightedCrossentropy

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


def test_negatives_over_positives_gives_both_kinds_the_same_weight():
    loss = WeightedCrossentropy(1 / LABELS.mean(axis=0) - 1)
    assert loss.positive_weight == [3.0, 1.0]
    total = np.where(LABELS == 1, [loss.positive_weight], 1)
    for column, labels in zip(total.T, LABELS.T, strict=True):
        assert column[labels == 1].sum() == column[labels == 0].sum()


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
