import numpy as np
import pandas as pd
import pytest
from keras import layers

from studies.variants import (
    POOLINGS,
    VARIANTS,
    PooledHead,
    WeightedDraws,
    abnormal_twice,
    equal_views,
    settings_of,
)

VALUES = np.random.default_rng(0).normal(size=(3, 5, 4, 7)).astype("float32")


def logit(head, features):
    score = np.asarray(head(features), dtype=float)[:, 0]
    return np.log(score / (1 - score))


@pytest.mark.parametrize("pooling", POOLINGS)
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


def test_weights_make_the_prevalence_of_the_views_equal():
    images = pd.DataFrame({
        "view": ["AP"] * 4 + ["PA"] * 8,
        "Pneumonia": [1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    })  # fmt: skip
    weights = equal_views(images)
    for view in ("AP", "PA"):
        inside = images["view"] == view
        positive = inside & (images["Pneumonia"] == 1)
        assert weights[positive].sum() / weights[inside].sum() == pytest.approx(4 / 12)
        assert weights[inside].sum() == pytest.approx(inside.sum())


def test_abnormal_negatives_weigh_twice_and_positives_once():
    images = pd.DataFrame({
        "Pneumonia": [1, 0, 0],
        "detailed_class": ["Lung Opacity", "Normal", "No Lung Opacity / Not Normal"],
    })  # fmt: skip
    assert abnormal_twice(images).tolist() == [1, 1, 2]


def test_films_are_drawn_in_proportion_to_their_weights():
    batches = WeightedDraws.__new__(WeightedDraws)  # no films are read
    batches.seed, batches.batch_size = 0, 4
    batches.image_ids, batches.film_weights = np.arange(10), np.array([3.0] + [1.0] * 9)
    epochs = [np.concatenate([batches.rows(e, i) for i in range(3)]) for e in range(400)]
    assert all(len(epoch) == 10 for epoch in epochs)
    share = np.bincount(np.concatenate(epochs), minlength=10) / 4000
    np.testing.assert_allclose(share, batches.film_weights / 12, atol=0.02)
    assert max(np.bincount(epoch).max() for epoch in epochs) <= 3
    np.testing.assert_array_equal(batches.rows(3, 1), batches.rows(3, 1))


def test_a_variant_keeps_the_settings_that_it_does_not_change():
    base, changed = settings_of("mean", 0), settings_of("plain", 0)
    assert changed["training"] == base["training"] | {"box_weight": 0.0}
    assert changed["model"] == base["model"] | {"map_stride": 32}
    same = set(base) - {"training", "model", "variant"}
    assert {name: changed[name] for name in same} == {name: base[name] for name in same}
    assert all(set(variant.settings) <= set(base) for variant in VARIANTS.values())
