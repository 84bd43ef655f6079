import keras
import numpy as np
import pytest
from keras import ops

from chexnet.training.losses import balancing_weights, compile_losses, score_loss

LABELS = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
SCORES = np.array([[0.8, 0.3], [0.4, 0.1], [0.2, 0.9], [0.5, 0.6]], np.float32)


def value(loss, labels=LABELS, scores=SCORES):
    return float(ops.convert_to_numpy(loss(labels, scores)))


def test_without_weights_it_is_binary_cross_entropy():
    by_hand = -np.mean(np.log(np.where(LABELS == 1, SCORES, 1 - SCORES)))
    assert value(score_loss("crossentropy", None, 0.0)) == pytest.approx(by_hand, rel=1e-5)
    assert value(score_loss("crossentropy", [1, 1], 0.0)) == pytest.approx(by_hand, rel=1e-5)


def test_a_positive_film_counts_its_weight():
    entropy = -np.log(np.where(LABELS == 1, SCORES, 1 - SCORES))
    by_hand = np.mean(entropy * np.where(LABELS == 1, [[3.0, 0.5]], 1))
    assert value(score_loss("crossentropy", [3, 0.5], 0.0)) == pytest.approx(by_hand, rel=1e-5)


def test_smoothing_with_and_without_weights_is_keras_own():
    plain = score_loss("crossentropy", None, 0.2)
    assert value(score_loss("crossentropy", [1, 1], 0.2)) == pytest.approx(value(plain), rel=1e-5)


def test_balanced_weights_are_negatives_over_positives():
    assert balancing_weights(LABELS, ("a", "b")) == [3.0, 1.0]
    weight = balancing_weights(LABELS, ("a", "b"))
    total = np.where(LABELS == 1, [weight], 1)
    for column, labels in zip(total.T, LABELS.T, strict=True):
        assert column[labels == 1].sum() == column[labels == 0].sum()


def test_balancing_a_class_with_one_value_is_refused():
    with pytest.raises(ValueError, match="all 4 training films have the same b"):
        balancing_weights(np.c_[LABELS[:, 0], np.zeros(4)], ("a", "b"))


def test_the_focal_loss_looks_away_from_what_is_easy():
    focal = score_loss("focal", None, 0.0)
    easy, hard = np.array([[0.9]]), np.array([[0.4]])
    one = np.ones((1, 1))
    for score in (easy, hard):
        by_hand = -((1 - score) ** 2) * np.log(score)
        assert value(focal, one, score) == pytest.approx(by_hand.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hinge", None, 0.0), "loss='hinge'"),
        (("crossentropy", None, 1.0), "label_smoothing=1.0"),
        (("focal", [2.0], 0.0), "choose one of them"),
        (("crossentropy", [0.0], 0.0), "allowed are numbers above 0"),
    ],
)
def test_what_is_not_allowed_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        score_loss(*arguments)


def test_it_comes_back_from_its_config():
    loss = score_loss("crossentropy", [2.0, 3.0], 0.1)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert value(again) == value(loss)


def test_the_places_have_a_loss_of_their_own_weight():
    scores = score_loss("crossentropy", None, 0.0)
    assert compile_losses(scores, box_weight=None) == {"loss": scores}
    both = compile_losses(scores, box_weight=0.5)
    assert both["loss_weights"] == {"predictions": 1.0, "location": 0.5}
    assert set(both["loss"]) == {"predictions", "location"}
