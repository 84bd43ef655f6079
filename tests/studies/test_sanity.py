"""Sanity checks of the evidence: what knows nothing must be seen to know nothing.

Adebayo et al. 2018 (arXiv:1810.03292): maps that stay good when the weights or the labels are made
random have nothing to say about the model. The same on a real run: ``python -m studies.sanity``.
"""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from chexnet.auroc import auroc
from chexnet.cam import class_activation_map
from chexnet.evaluation import localization_scores
from chexnet.evaluation.localization import choose_map_threshold

SIZE, SPOT, TRAIN = 40, 12, 240
FROM_THE_TOP = ("predictions", "third", "second", "first")


@pytest.fixture(scope="module")
def study() -> tuple[np.ndarray, np.ndarray, pd.DataFrame, pd.DataFrame]:
    """Films, labels, boxes and sizes: on each film a striped square, with the finding a plain one.

    Both are as bright on average, so brightness alone tells nothing.
    """
    rng = np.random.default_rng(0)
    stripes = np.where(np.arange(SPOT) % 4 < 2, 120, 0)[:, np.newaxis] * np.ones(SPOT)
    plain = np.full((SPOT, SPOT), 60.0)
    films, labels, boxes = [], [], []
    for number in range(TRAIN + 120):
        film = rng.normal(80, 12, (SIZE, SIZE))
        # The halves are dealt out, so that the two squares never lie over each other.
        left = rng.integers(0, SIZE // 2 - SPOT + 1) + (SIZE // 2) * rng.permutation(2)
        top = rng.integers(0, SIZE - SPOT + 1, 2)
        label = int(rng.random() < 0.5)
        for x, y, square in zip(left, top, (stripes, plain)[: 1 + label], strict=False):
            film[y : y + SPOT, x : x + SPOT] += square
        if label:
            boxes.append((f"{number:03d}", left[1], top[1], SPOT, SPOT))
        films.append(film.clip(0, 255).astype(np.uint8)[..., np.newaxis])
        labels.append(label)
    table = pd.DataFrame(boxes, columns=["image_id", "x", "y", "width", "height"])
    ids = [f"{number:03d}" for number in range(len(films))]
    sizes = pd.DataFrame({"image_id": ids, "rows": SIZE, "columns": SIZE})
    return np.stack(films), np.array(labels), table, sizes


def network(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    film = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 255)(film)
    for name, strides in (("first", 2), ("second", 2), ("third", 1)):
        x = layers.Conv2D(16, 3, strides=strides, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.8, name=f"{name}_norm")(x)
        x = layers.ReLU(name="relu" if name == "third" else f"{name}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(film, layers.Dense(1, activation="sigmoid", name="predictions")(x))


def trained(films: np.ndarray, labels: np.ndarray, *, epochs: int) -> keras.Model:
    model = network(seed=0)
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy")
    model.fit(films[:TRAIN], labels[:TRAIN], batch_size=16, epochs=epochs, verbose=0)
    return model


@pytest.fixture(scope="module")
def good(study) -> keras.Model:
    return trained(*study[:2], epochs=12)


def judge(model: keras.Model, study: tuple) -> pd.Series:
    """AUROC, hit rate and IoU on the films that were not trained on."""
    films, labels, boxes, sizes = study
    ids = sizes["image_id"].to_numpy()
    half = TRAIN + 60  # the first half of them chooses the threshold of the maps
    scores, maps = class_activation_map(model, films[TRAIN:])
    chosen, _ = choose_map_threshold(maps[:60], ids[TRAIN:half], boxes, sizes)
    found = localization_scores(maps[60:], ids[half:], boxes, sizes, threshold=chosen)
    found = found[["hit", "iou", "energy_in_boxes"]].astype(float).mean()
    found["auroc"] = auroc(labels[TRAIN:], scores[:, 0]).value
    return found


def test_random_weights(study, good):
    """Maps of random weights find hardly more than a random point."""
    best = judge(good, study)
    assert best["auroc"] > 0.95
    assert best["hit"] > 0.8
    model, found = network(seed=0), []
    for seed in range(1, 7):
        model.set_weights(network(seed).get_weights())
        found.append(judge(model, study))
    random = pd.DataFrame(found)  # its AUROC may be anything: the sign of a random score is random
    assert random["hit"].max() < best["hit"] - 0.3
    assert random["hit"].mean() < best["hit"] / 2
    assert random["iou"].max() < best["iou"] - 0.2
    assert random["energy_in_boxes"].mean() < best["energy_in_boxes"] / 2


def test_maps_get_lost_as_weights_are_made_random_from_the_top(study, good):
    """Cascading randomisation, Adebayo et al. 2018, section 4.1."""
    model, fresh = network(seed=0), network(seed=7)
    model.set_weights(good.get_weights())
    before = class_activation_map(model, study[0][TRAIN:])[1]
    hits = [judge(model, study)["hit"]]
    for name in FROM_THE_TOP:
        for layer in model.layers:
            if layer.name in (name, f"{name}_norm"):
                layer.set_weights(fresh.get_layer(layer.name).get_weights())
        hits.append(judge(model, study)["hit"])
    assert max(hits[1:]) < hits[0] - 0.3
    after = class_activation_map(model, study[0][TRAIN:])[1]
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.3


def test_shuffled_labels(study):
    """Shuffled are all labels, those that judge too: only a leak could tell them."""
    films, labels, *_ = study
    mixed = np.random.default_rng(1).permutation(labels)
    model = trained(films, mixed, epochs=12)
    scores = model.predict(films, verbose=0)[:, 0]
    seen = auroc(mixed[:TRAIN], scores[:TRAIN])
    unseen = auroc(mixed[TRAIN:], scores[TRAIN:])
    assert seen.low > 0.5
    positives = mixed[TRAIN:].sum()
    assert abs(unseen.value - 0.5) < 3 * error_by_chance(positives, 120 - positives)


def error_by_chance(positives: int, negatives: int) -> float:
    """Of an AUROC where labels mean nothing and no scores tie: Mann and Whitney 1947."""
    return float(np.sqrt((positives + negatives + 1) / (12 * positives * negatives)))


def test_many_shuffles():
    """Over many shuffles the AUROC is one half within its error."""
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.3).astype(int)
    score = rng.normal(size=400) + 2 * y
    assert auroc(y, score).value > 0.9
    results = [auroc(rng.permutation(y), score) for _ in range(500)]
    values = np.array([result.value for result in results])
    error = error_by_chance(y.sum(), len(y) - y.sum())
    assert abs(values.mean() - 0.5) < 4 * error / np.sqrt(len(values))
    assert values.std() == pytest.approx(error, rel=0.1)
    covered = np.mean([result.low <= 0.5 <= result.high for result in results])
    assert 0.92 <= covered <= 0.98
