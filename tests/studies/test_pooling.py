import numpy as np
import pytest
from keras import layers

from studies.pooling import POOLINGS, PooledHead

VALUES = np.random.default_rng(0).normal(size=(3, 5, 4, 7)).astype("float32")


def logit(head, features):
    score = np.asarray(head(features), dtype=float)[:, 0]
    return np.log(score / (1 - score))


@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "mean"])
def test_the_score_is_the_stated_function_of_the_map(pooling):
    head = PooledHead(pooling)
    head(VALUES)
    kernel = np.linspace(-1, 1, 7)[:, None]
    head.set_weights([kernel, np.array([0.25])])
    maps = (VALUES @ kernel).reshape(3, 20)
    share = 1 / (1 + np.exp(-maps))
    expected = {
        "pcam": (share * maps).sum(1) / share.sum(1),
        "top10%": np.sort(maps)[:, -2:].mean(1),
        "lse2": np.log(np.exp(2 * maps).mean(1)) / 2,
    }[pooling]
    np.testing.assert_allclose(logit(head, VALUES), expected + 0.25, atol=1e-4)


def test_a_head_is_made_again_from_its_configuration():
    head = PooledHead("pcam", name="predictions")
    again = layers.deserialize(layers.serialize(head))
    assert (again.pooling, again.name) == ("pcam", "predictions")
